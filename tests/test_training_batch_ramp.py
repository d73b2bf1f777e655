"""A batch that grows: sizes, tokens and the schedule's clock by hand."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.training.batch_ramp import BatchRamp, plan_batches, ramp_sizes
from gptjax.training.optimizers import OptimizerConfig, make_optimizer, make_schedule

RAMP = BatchRamp(start=2, tokens=100, sizes=4)


def test_sizes_and_rows_by_hand():
    """Full after 100 tokens of rows of 10: the shares before each step are 0, .2, .4, .8, 1.4."""
    assert ramp_sizes(RAMP, 8) == [2, 4, 6, 8]
    plan = plan_batches(RAMP, batch_size=8, length=10, steps=7)
    assert plan.first_row.tolist() == [0, 2, 4, 8, 14, 22, 30, 38]
    assert [plan.rows(step) for step in range(4)] == [(0, 2), (2, 2), (4, 4), (8, 6)]
    assert plan.total == 38 and plan.updates == 38 / 8


def test_every_row_is_read_once_in_order():
    plan = plan_batches(BatchRamp(start=8, tokens=5000, sizes=5), batch_size=64, length=16, steps=40)
    read = np.concatenate([np.arange(first, first + count) for first, count in map(plan.rows, range(40))])
    assert (read == np.arange(plan.total)).all()
    sizes = np.diff(plan.first_row)
    assert (np.diff(sizes) >= 0).all() and set(sizes) == set(
        ramp_sizes(BatchRamp(start=8, tokens=1, sizes=5), 64)
    )
    # At least the line, at most one step of the staircase below it.
    line = 8 + 56 * np.minimum(1, plan.first_row[:-1] * 16 / 5000)
    assert (sizes <= line).all() and (line - sizes < 14 + 1e-9).all()


def test_without_a_ramp_every_batch_is_full():
    plan = plan_batches(None, batch_size=8, length=10, steps=5)
    assert [plan.rows(step) for step in range(5)] == [(8 * step, 8) for step in range(5)]
    assert plan.updates == 5 and plan.clock(3) == 3


def test_the_learning_rate_is_a_function_of_tokens():
    """Adam's update of a constant gradient is the learning rate: that of the rows read, in full batches."""
    plan = plan_batches(RAMP, batch_size=8, length=10, steps=7)
    config = OptimizerConfig(
        learning_rate=1e-2, schedule="cosine", warmup_steps=1, weight_decay=0.0, clip_norm=None, epsilon=1e-12
    )
    axes = {"w": ("embed", "mlp"), "stack": ("layers", "embed", "mlp")}
    params = {"w": jnp.zeros((2, 2)), "stack": jnp.zeros((1, 2, 2))}
    gradient = {"w": jnp.ones((2, 2)), "stack": jnp.eye(2)[None]}
    rate = make_schedule(config, plan.updates)
    expected = np.array([rate(plan.first_row[step] / 8) for step in range(7)])
    for kind in ("adamw", "muon"):
        optimizer = make_optimizer(replace(config, kind=kind), plan.updates, axes, plan.clock)
        state, rates = optimizer.init(params), []
        for _ in range(7):
            updates, state = optimizer.update(gradient, state, params)
            rates.append([-float(updates["w"][0, 0]), -float(updates["stack"][0, 0, 0])])
        rates = np.array(rates)
        np.testing.assert_allclose(rates[:, 0], expected, rtol=1e-4)
        np.testing.assert_allclose(rates[1:, 1] / rates[1, 1], expected[1:] / expected[1], rtol=1e-3)
    halfway = 1e-2 * (0.1 + 0.9 * (1 + np.cos(np.pi * (22 / 8 - 1) / (38 / 8 - 1))) / 2)
    np.testing.assert_allclose(rate(plan.clock(5)), halfway, rtol=1e-6)


def test_a_decay_that_ends_before_the_run_stays_at_its_end():
    """GPT-3: cosine to a tenth at 260 of 300 billion tokens."""
    schedule = make_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=0, decay_steps=260), 300)
    np.testing.assert_allclose([schedule(130), schedule(260), schedule(299)], [0.55, 0.1, 0.1], rtol=1e-6)


def test_impossible_ramps_are_refused():
    with pytest.raises(ValueError, match="sizes of at least 2"):
        BatchRamp(start=2, tokens=10, sizes=1)
    for start, size in ((8, 8), (2, 9)):
        with pytest.raises(
            ValueError, match=f"batch_size = {size} is not reached from ramp.start = {start} in 3"
        ):
            ramp_sizes(BatchRamp(start=start, tokens=10), size)
