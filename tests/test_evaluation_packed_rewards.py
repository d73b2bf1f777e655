"""Completions packed into shared rows get the rewards they get alone."""

import jax
import numpy as np
import pytest
from ppo_case import MODEL

from gptjax.data.preferences import RankedArrays, pack_ranked
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import ScalarModel
from gptjax.sharding.mesh import MeshConfig, make_mesh, place
from gptjax.stages.reward import (
    RewardConfig,
    completion_rewards,
    count_groups,
    make_reward_loss,
    score_all,
)
from gptjax.stages.sharded import compile_step, create_state
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import make_train_step

G, K, LENGTH = 8, 3, 20
# A large epsilon keeps the update proportional to the gradient, so that rounding is not blown up.
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, epsilon=1e-2, schedule="constant", weight_decay=0.0)


@pytest.fixture(scope="module")
def model():
    definition = ModelDefinition(ScalarModel, MODEL)
    return definition, jax.jit(definition.initialise)(jax.random.key(0))


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(1)
    lengths = rng.integers(2, 9, (G, K)).astype(np.int32)
    lengths[3, 2] = lengths[6, 0] = 0  # two groups with a completion less
    tokens = rng.integers(1, MODEL.vocab_size, (G, K, LENGTH)).astype(np.int32)
    tokens *= np.arange(LENGTH) < lengths[..., None]
    scores = rng.permuted(np.tile(np.arange(K, dtype=np.float32), (G, 1)), axis=1)
    scores[1, 0] = scores[1, 1]  # a tie
    return RankedArrays(tokens, lengths, scores, np.arange(G))


@pytest.fixture(scope="module")
def alone(model, arrays):
    """Rewards `[G, K]` of the completions, one to a row; 0 where there is none."""
    definition, params = model
    scalars = jax.jit(definition.apply)(params, arrays.tokens.reshape(G * K, LENGTH))
    last = np.maximum(arrays.lengths - 1, 0).reshape(-1, 1)
    return np.take_along_axis(np.asarray(scalars), last, 1).reshape(G, K) * (arrays.lengths > 0)


@pytest.mark.parametrize("parts", [1, 2])
def test_packed_equals_unpacked(model, arrays, alone, parts):
    definition, params = model
    index = np.array([5, 0, 3, 1, 6, 2])
    batch = pack_ranked(arrays, index, LENGTH, parts=parts)
    assert len(batch["tokens"]) < batch["valid"].sum() / 2  # rows are shared
    assert (batch["tokens"] > 0).sum() == arrays.lengths[index].sum()  # nothing is lost or doubled
    program = jax.jit(lambda batch: completion_rewards(definition, params, batch))
    got = np.zeros((len(index), K))
    for part in range(parts):
        # What gradient accumulation makes of the batch: every `parts`-th row and prompt.
        got[part::parts] = program({name: array[part::parts] for name, array in batch.items()})
    assert np.ptp(alone) > 0.5
    np.testing.assert_allclose(got * batch["valid"], alone[index], atol=1e-5)


def test_too_few_rows_are_refused(arrays):
    with pytest.raises(ValueError, match=r"need \d+ rows of 20 ids, but 1 were given"):
        pack_ranked(arrays, np.arange(G), LENGTH, rows=1)


def one_step(model, arrays, mesh_config, accumulate):
    """Parameters and metrics after one update of the reward model, on the host."""
    definition, params = model
    mesh, optimizer = make_mesh(mesh_config), make_optimizer(OPTIMIZER, 10, definition.axes)
    state = create_state(definition, optimizer, mesh, params=params)
    loss = make_reward_loss(definition, margin_scale=0.1)
    step = compile_step(make_train_step(loss, count_groups, optimizer, accumulate=accumulate), mesh)
    batch = pack_ranked(arrays, np.arange(G), LENGTH, rows=16, parts=accumulate)
    state, metrics = step(state, place(batch, mesh), jax.random.key(0))
    return jax.device_get((state.params, metrics))


@pytest.fixture(scope="module")
def update(model, arrays):
    return one_step(model, arrays, MeshConfig(), 1)


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "accumulate"), [(MeshConfig(data=8), 1), (MeshConfig(), 2)])
def test_an_update_does_not_depend_on_devices_or_micro_batches(model, arrays, update, mesh, accumulate):
    expected, expected_metrics = update
    got, metrics = one_step(model, arrays, mesh, accumulate)
    moves = jax.tree.map(lambda a, b: np.abs(a - b).max(), expected, model[1])
    assert max(jax.tree.leaves(moves)) > 1e-4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), got, expected)
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, atol=2e-6, rtol=2e-6, err_msg=name)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_scoring_does_not_depend_on_micro_batches(model, arrays, alone, accumulate):
    config = RewardConfig(length=LENGTH, batch_size=4, accumulate=accumulate)
    np.testing.assert_allclose(score_all(*model, arrays, config), alone, atol=1e-5)
