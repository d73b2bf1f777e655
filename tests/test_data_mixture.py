"""The order of the data is a function of the step."""

import numpy as np
import pytest

from gptjax.data.mixture import Mixture
from gptjax.data.quality import DataError


def rows(start, count):
    return (start + np.arange(count, dtype=np.int32))[:, None].repeat(3, axis=1)


def mixture(seed=0, batch_size=8, weights=None):
    sources = {"a": rows(0, 50), "b": rows(1000, 20)}
    return Mixture(sources, weights or {"a": 0.75, "b": 0.25}, batch_size, seed)


def test_a_batch_depends_on_the_step_alone():
    in_order = [mixture().batch_at(step) for step in range(12)]
    fresh = mixture()
    for step in (11, 3, 7, 0):
        assert (fresh.batch_at(step) == in_order[step]).all()
    assert in_order[0].shape == (8, 3) and in_order[0].dtype == np.int32
    assert not (in_order[0] == in_order[1]).all()
    assert not (mixture(seed=1).batch_at(0) == in_order[0]).all()


def test_shares_are_those_of_the_weights_and_need_no_sum_of_one():
    for weights in ({"a": 0.75, "b": 0.25}, {"b": 1, "a": 3}):
        drawn = np.concatenate([mixture(weights=weights).batch_at(step)[:, 0] for step in range(125)])
        assert (drawn >= 1000).mean() == pytest.approx(0.25, abs=0.002)


def test_every_row_comes_once_before_any_comes_again_and_in_a_new_order():
    drawn = np.concatenate([mixture().batch_at(step)[:, 0] for step in range(40)])
    for low, count in ((0, 50), (1000, 20)):
        mine = drawn[(drawn >= low) & (drawn < low + count)]
        first, second = mine[:count], mine[count : 2 * count]
        assert sorted(first) == sorted(second) == list(range(low, low + count))
        assert not (first == second).all()
        assert not (first == np.sort(first)).all()


def test_dicts_of_arrays_stay_together():
    a = {"tokens": rows(0, 10), "loss_mask": rows(0, 10).astype(np.float32)}
    b = {"tokens": rows(100, 10), "loss_mask": rows(100, 10).astype(np.float32)}
    batch = Mixture({"a": a, "b": b}, {"a": 1.0, "b": 1.0}, 6, 0).batch_at(2)
    assert batch["tokens"].shape == (6, 3) and batch["loss_mask"].dtype == np.float32
    assert (batch["tokens"] == batch["loss_mask"]).all()


@pytest.mark.parametrize(
    ("sources", "weights", "message"),
    [
        ({"a": rows(0, 5)}, {"a": 1.0, "c": 1.0}, "only one of them has: c"),
        ({"a": rows(0, 5), "b": rows(0, 5)}, {"a": 1.0}, "only one of them has: b"),
        ({}, {}, "at least one source"),
        ({"a": rows(0, 5)}, {"a": 0.0}, "weight of 'a' is 0.0"),
        ({"a": rows(0, 5)}, {"a": -1.0}, "weight of 'a' is -1.0"),
        ({"a": rows(0, 5)}, {"a": float("nan")}, "weight of 'a' is nan"),
        ({"a": rows(0, 0)}, {"a": 1.0}, "source 'a' has no row"),
        ({"a": rows(0, 5), "b": rows(0, 5)[:, :2]}, {"a": 1.0, "b": 1.0}, "rows of 'b' are"),
        ({"a": {"x": rows(0, 5), "y": rows(0, 4)}}, {"a": 1.0}, "different numbers of rows"),
    ],
)
def test_what_can_not_be_mixed_is_refused(sources, weights, message):
    with pytest.raises(DataError, match=message):
        Mixture(sources, weights, 4, 0)
