"""Spikes: a batch at fifty times the scale changes nothing but the number of the step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_training_step import AXES, count_rows, regression_batch, squares

from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.spikes import SpikeConfig, spiked, watch_spikes
from gptjax.training.step import TrainState, make_train_step

WINDOW = 8
CONFIG = OptimizerConfig(learning_rate=0.01, spikes=SpikeConfig(window=WINDOW, deviations=6.0))

pytestmark = pytest.mark.fault(name="nan")


@pytest.fixture(scope="module")
def setup():
    """(fresh state, jitted step) that watches for spikes."""
    optimizer = make_optimizer(CONFIG, 100, AXES)
    params = {"w": jnp.full((3, 2), 0.3), "b": jnp.zeros(2)}
    return TrainState.create(params, optimizer), jax.jit(make_train_step(squares, count_rows, optimizer))


def fifty_times(batch):
    return {name: 50 * array for name, array in batch.items()}


def run(setup, batches):
    state, step = setup
    for batch in batches:
        state, metrics = step(state, batch, jax.random.key(0))
    return state, metrics


def test_a_spike_leaves_parameters_moments_and_memory_as_they_were(setup):
    calm = [regression_batch(seed) for seed in range(12)]
    expected, _ = run(setup, calm)
    found, metrics = run(setup, [*calm, fifty_times(regression_batch(99))])
    assert metrics["skipped"] == 1 and int(found.step) == 13 and int(expected.step) == 12
    for part in ("params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(found, part), getattr(expected, part))
    after, metrics = run((found, setup[1]), [regression_batch(12)])
    assert metrics["skipped"] == 0
    assert not np.array_equal(after.params["w"], found.params["w"])


def test_the_run_goes_on_as_if_the_batch_had_not_been_there(setup):
    calm = [regression_batch(seed) for seed in range(14)]
    with_spike, _ = run(setup, [*calm[:10], fifty_times(calm[0]), *calm[10:]])
    without, _ = run(setup, calm)
    for part in ("params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(with_spike, part), getattr(without, part))


def test_nothing_is_judged_before_the_window_is_full(setup):
    calm = [regression_batch(seed) for seed in range(WINDOW - 1)]
    _, metrics = run(setup, [*calm, fifty_times(regression_batch(99))])
    assert metrics["skipped"] == 0


@pytest.mark.parametrize("which", ["value", "gradient"])
def test_the_threshold_is_mean_and_deviations(which):
    """By numpy: the last eight values, mean + 6 standard deviations."""
    watch, rng = watch_spikes(SpikeConfig(window=WINDOW, deviations=6.0)), np.random.default_rng(0)
    values = rng.normal(5, 0.1, 20).astype(np.float32)
    state = watch.init(None)
    for value in values:
        _, state = watch.update({"w": jnp.array([value])}, state, value=jnp.float32(value))
        assert not spiked(state)
    limit = values[-WINDOW:].mean() + 6 * values[-WINDOW:].std()
    for factor, answer in ((0.99, False), (1.01, True)):
        now = {"value": np.float32(5), "gradient": np.float32(5)} | {which: np.float32(limit * factor)}
        gradient, after = watch.update({"w": jnp.array([now["gradient"]])}, state, value=now["value"])
        assert bool(spiked((optax.EmptyState(), after))) == answer
        assert gradient["w"][0] == now["gradient"]


def test_without_a_watch_nothing_is_a_spike():
    optimizer = make_optimizer(OptimizerConfig(), 10, AXES)
    assert spiked(optimizer.init({"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)})) is False
