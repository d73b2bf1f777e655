"""Every stage on data x fsdp x tensor: replies, experience and updates are those of one device."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ppo_case import CONFIG, END, MODEL, OPTIMIZER, PAD, ROUNDING, make_case, text_batch

from gptjax.data.preferences import RankedArrays, pack_ranked
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import ScalarModel
from gptjax.sharding.mesh import MeshConfig, make_mesh, place, to_host
from gptjax.stages import ppo_iteration
from gptjax.stages.handover import parameter_digest
from gptjax.stages.reward import count_groups, make_reward_loss
from gptjax.stages.sharded import bounded, compile_step, create_state, first_step
from gptjax.training.optimizers import make_optimizer
from gptjax.training.step import make_train_step

ONE, EIGHT = MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)
WIDE = dataclasses.replace(MODEL, vocab_size=24)  # divides over `tensor`


def close(ours, theirs):
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6, err_msg=jax.tree_util.keystr(path))


def test_what_lies_on_many_devices_comes_whole():
    rows = np.arange(16).reshape(8, 2)
    for mesh in (ONE, EIGHT):
        placed = place({"rows": rows}, make_mesh(mesh)) | {"numbers": [1, 2]}
        found = to_host(placed)
        assert type(found["rows"]) is np.ndarray
        np.testing.assert_array_equal(found["rows"], rows)


def test_only_two_updates_are_under_way(monkeypatch):
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    metrics = []
    for number in range(4):
        metrics.append({"loss": number})
        bounded(metrics)
    assert waited == [[], [{"loss": 0}], [{"loss": 1}], [{"loss": 2}]]


def one_iteration(monkeypatch, case, mesh_config):
    """Rollout, experience, the state after and the metrics of an iteration of PPO, on the host."""
    seen, mesh = {}, make_mesh(mesh_config)
    config = dataclasses.replace(CONFIG, ema_decay=0.75, mesh=mesh_config, batch_size=8)

    def watch(name):
        make = getattr(ppo_iteration, name)

        def made(*given):
            function = make(*given)

            def watched(*given):
                seen[name] = function(*given)
                return seen[name]

            return watched

        monkeypatch.setattr(ppo_iteration, name, made)

    with monkeypatch.context() as monkeypatch:
        watch("make_rollout")
        watch("make_experience")
        optimizers = ppo_iteration.make_optimizers(config, case.language, case.scalar)
        policy = create_state(case.language, optimizers[0], mesh, params=case.policy)
        critic = create_state(case.scalar, optimizers[1], mesh, params=case.critic)
        reference = create_state(case.language, optimizers[0], mesh, params=case.reference).params
        reward = create_state(case.scalar, optimizers[1], mesh, params=case.reward).params
        kl_coef = jnp.float32(config.kl_coef)
        # Not iteration 0: there policy and reference must be the same.
        before = ppo_iteration.PpoState(
            first_step(mesh) + 1, policy, critic, jax.tree.map(jnp.copy, policy.params), kl_coef
        )
        tokenizer = SimpleNamespace(im_end_id=END, pad_id=PAD)
        models = (case.language, case.scalar, reference, reward)
        program = ppo_iteration.make_iteration(config, tokenizer, *models, text_batch, mesh)
        after, metrics = program(before, place(case.prompts, mesh), jax.random.key(11))
    return to_host((seen["make_rollout"], seen["make_experience"][0], after, metrics))


@pytest.mark.slow
def test_an_iteration_of_ppo_is_that_of_one_device(monkeypatch):
    case = make_case(WIDE)
    one, eight = (one_iteration(monkeypatch, case, mesh) for mesh in (ONE, EIGHT))
    for name in ("response", "mask", "ended"):
        np.testing.assert_array_equal(getattr(one[0], name), getattr(eight[0], name))
    assert len({int(n) for n in one[0].mask.sum(1)}) > 1  # replies of several lengths
    close(eight[0].sampler_log_probs, one[0].sampler_log_probs)
    close(eight[1], one[1])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), case.policy, one[2].policy.params)
    assert max(jax.tree.leaves(moved)) > 1e-4
    close(eight[2], one[2])
    kept = [n for n in one[3] if not n.startswith(("digest/", "self_check/", *ROUNDING))]
    close({n: eight[3][n] for n in kept}, {n: one[3][n] for n in kept})


@pytest.mark.slow
def test_an_update_of_the_reward_model_is_that_of_one_device():
    definition, rng = ModelDefinition(ScalarModel, WIDE), np.random.default_rng(0)
    params = jax.jit(definition.initialise)(jax.random.key(1))
    lengths = rng.integers(2, 8, (8, 3)).astype(np.int32)
    tokens = rng.integers(1, WIDE.vocab_size, (8, 3, 8)).astype(np.int32)
    arrays = RankedArrays(tokens, lengths, rng.normal(size=(8, 3)).astype(np.float32), np.arange(8))
    batch = pack_ranked(arrays, np.arange(8), 16, 16)
    found = []
    for mesh_config in (ONE, EIGHT):
        mesh, optimizer = make_mesh(mesh_config), make_optimizer(OPTIMIZER, 10, definition.axes)
        state = create_state(definition, optimizer, mesh, params=params)
        step = make_train_step(make_reward_loss(definition, 0.0), count_groups, optimizer)
        found.append(to_host(compile_step(step, mesh)(state, place(batch, mesh), jax.random.key(0))))
    assert parameter_digest(found[0][0].params) != parameter_digest(params)
    close(found[1], found[0])
