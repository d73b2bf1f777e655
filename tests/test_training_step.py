"""Exact gradient accumulation and the guard against numbers that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.models.families import gpt2
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.stages.language_loss import count_tokens, make_language_loss
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import TrainState, accumulated_gradient, make_train_step


def squares(params, batch, total, key):
    """Sum of squared errors of a linear model, over the count of the whole batch."""
    error = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return (error**2).sum() / total, {"absolute": jnp.abs(error).sum() / total}


def count_rows(batch):
    return jnp.float32(batch["x"].shape[0])


AXES = {"w": ("embed", "mlp"), "b": ("mlp",)}
CONFIG = OptimizerConfig(learning_rate=0.05, warmup_steps=2)


def regression_batch(seed, rows=8):
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(rows, 3)).astype(np.float32),
        "y": rng.normal(size=(rows, 2)).astype(np.float32),
    }


def poisoned(batch, value=np.nan):
    y = batch["y"].copy()
    y[5, 1] = value
    return batch | {"y": y}


@pytest.fixture(scope="module")
def regression():
    """(fresh state, jitted step)."""
    optimizer = make_optimizer(CONFIG, 10, AXES)
    params = {"w": jnp.full((3, 2), 0.3), "b": jnp.zeros(2)}
    return TrainState.create(params, optimizer), jax.jit(make_train_step(squares, count_rows, optimizer))


def run(regression, batches):
    state, step = regression
    history = []
    for batch in batches:
        state, metrics = step(state, batch, jax.random.key(0))
        history.append(metrics)
    return state, history


def test_accumulation_changes_nothing():
    """A language model with a ragged mask: rows differ in their tokens, so micro-batch means would differ."""
    config = gpt2("124M", vocab_size=23, context_length=6, width=16, layers=1, heads=2)
    definition, rng = ModelDefinition(LanguageModel, config), np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), definition.abstract
    )
    batch = {name: rng.integers(0, 23, (8, 6)) for name in ("tokens", "targets")}
    batch["loss_mask"] = np.tril(np.ones((8, 6), np.float32))
    loss_fn = make_language_loss(definition, z_loss=1e-3)

    def results(accumulate):
        def whole(params):
            totals, key = count_tokens(batch), jax.random.key(0)
            return accumulated_gradient(loss_fn, params, batch, totals, key, accumulate)

        return jax.jit(whole)(params)

    once = results(1)
    for accumulate in (2, 4):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), results(accumulate), once
        )
    assert float(once[0]) > 1


def test_micro_batches_get_different_keys():
    def loss(params, batch, total, key):
        return params["w"].sum() + 0 * batch["x"].sum(), {"draw": jax.random.uniform(key)}

    def draws(accumulate):
        arguments = {"w": jnp.ones(2)}, {"x": jnp.ones((4, 1))}, 1.0, jax.random.key(0), accumulate
        return float(accumulated_gradient(loss, *arguments)[1]["draw"])

    first = draws(1)
    second = draws(2) - first
    assert 0 < second < 1
    assert abs(first - second) > 1e-3


def test_the_key_of_a_step_is_its_number():
    def loss(params, batch, total, key):
        return (params["w"] ** 2).sum() + (params["b"] ** 2).sum(), {"draw": jax.random.uniform(key)}

    optimizer = make_optimizer(CONFIG, 10, AXES)
    step = jax.jit(make_train_step(loss, count_rows, optimizer))
    fresh = TrainState.create({"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, optimizer)
    state, first = step(fresh, regression_batch(0), jax.random.key(0))
    _, second = step(state, regression_batch(0), jax.random.key(0))
    _, again = step(fresh, regression_batch(0), jax.random.key(0))
    assert float(first["draw"]) == float(again["draw"]) != float(second["draw"])


def test_metrics_of_a_step_by_hand(regression):
    batch = {"x": np.eye(3, dtype=np.float32)[:2], "y": np.zeros((2, 2), np.float32)}
    _, [metrics] = run(regression, [batch])
    # Every prediction is 0.3: d/dw = 2 * 0.3 / 2 for four weights and 2 * 0.3 for two biases.
    np.testing.assert_allclose(metrics["absolute"], 4 * 0.3 / 2, rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], np.sqrt(4 * 0.3**2 + 2 * 0.6**2), rtol=1e-6)
    assert float(metrics["skipped"]) == 0


@pytest.mark.fault(name="nan")
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38], ids=["nan", "inf", "overflowing gradient"])
def test_a_batch_that_is_not_finite_leaves_no_trace(regression, value):
    """Parameters, moments and the schedule's count equal those of a run without the batch, bit for bit."""
    good = [regression_batch(seed) for seed in range(4)]
    with_bad, history = run(regression, [*good[:2], poisoned(good[2], value), good[3]])
    without, _ = run(regression, [*good[:2], good[3]])
    for name in ("params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(with_bad, name), getattr(without, name))
    assert [float(m["skipped"]) for m in history] == [0, 0, 1, 0]
    assert (int(with_bad.step), int(without.step)) == (4, 3)
    start = regression[0].params["w"]
    assert np.abs(np.asarray(without.params["w"]) - start).max() > 0.01


@pytest.mark.fault(name="nan")
def test_skips_in_a_row_are_counted(regression):
    bad = poisoned(regression_batch(0))
    _, history = run(regression, [bad, bad, regression_batch(1), bad])
    assert [float(m["skipped"]) for m in history] == [1, 2, 0, 1]
