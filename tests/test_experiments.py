"""Every experiment file: it says what it is, resolves, and its steps lower for a mesh of eight devices."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.config import ConfigError, experiment_docstring, from_json, load_experiment, to_json
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel, ScalarModel
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages.experience import Experience, count_totals, make_policy_loss, make_value_loss
from gptjax.stages.language_loss import PACKED, PLAIN, count_tokens, make_language_loss
from gptjax.stages.ppo_iteration import make_optimizers
from gptjax.stages.pretrain import PretrainConfig
from gptjax.stages.reward import count_groups, make_reward_loss
from gptjax.stages.road import RoadConfig, stage_configs
from gptjax.stages.rollout import Rollout
from gptjax.stages.sharded import state_shardings
from gptjax.training.batch_ramp import ramp_sizes
from gptjax.training.optimizers import make_optimizer
from gptjax.training.step import TrainState, make_train_step

ROOT = Path(__file__).parents[1]
FILES = sorted(
    str(file.relative_to(ROOT))
    for file in ROOT.glob("experiments/**/*.py")
    if file.name not in ("external_data.py", "sweep.py")
)


def test_there_are_experiments():
    assert "experiments/quickstart.py" in FILES


def load(file):
    """The configuration of an experiment; skips where the data that it names is absent."""
    try:
        return load_experiment(ROOT / file)
    except ConfigError as error:
        if "GPTJAX_DATA" in str(error):
            pytest.skip(str(error))
        raise


def stages_of(config):
    """name -> configuration of every stage whose steps are lowered here."""
    if isinstance(config, RoadConfig):
        return {name: stage for name, (_, stage) in stage_configs(config, Path("runs")).items()}
    return {"pretrain": config} if isinstance(config, PretrainConfig) else {}


@pytest.mark.parametrize("file", FILES)
def test_an_experiment_says_what_it_is_and_survives_json(file):
    config, text = load(file), experiment_docstring(ROOT / file)
    for heading in ("Paper:", "Expected:", "Time:", "Command:"):
        assert heading in text, f"the docstring of {file} has no '{heading}'"
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def rows(count, length, names):
    """The language-model batch of a stage, without its numbers."""
    kinds = {name: jnp.float32 if name == "loss_mask" else jnp.int32 for name in names}
    return {name: jax.ShapeDtypeStruct((count, length), kind) for name, kind in kinds.items()}


def rankings(config):
    """A reward batch: one row a completion at most."""
    R, G, K = 8 * config.batch_size, config.batch_size, config.k_max
    batch = {name: ((R, config.length), jnp.int32) for name in ("tokens", "segment_ids", "positions")}
    batch |= {"end_row": ((G, K), jnp.int32), "end_column": ((G, K), jnp.int32)}
    batch |= {"scores": ((G, K), jnp.float32), "valid": ((G, K), jnp.bool_)}
    return {name: jax.ShapeDtypeStruct(*declared) for name, declared in batch.items()}


def rollouts(config):
    """A PPO minibatch with its text."""
    B, P, T = config.batch_size // config.minibatches, config.prompt_length, config.sampling.max_new_tokens
    prompt, mask = (jax.ShapeDtypeStruct((B, P), kind) for kind in (jnp.int32, jnp.bool_))
    reply, real = (jax.ShapeDtypeStruct((B, T), kind) for kind in (jnp.int32, jnp.float32))
    rollout = Rollout(prompt, mask, reply, real, real, jax.ShapeDtypeStruct((B,), jnp.bool_))
    batch = {"experience": Experience(rollout, *6 * (real,))}
    return batch | ({"text": rows(config.ptx_rows, config.ptx_length, PACKED)} if config.ptx_coef else {})


def pieces(name, config, model):
    """(definition, loss, count, optimizer, batch) of every step that a stage compiles."""
    language, scalar = ModelDefinition(LanguageModel, model), ModelDefinition(ScalarModel, model)
    if name == "reward":
        optimizer = make_optimizer(config.optimizer, 100, scalar.axes)
        loss = make_reward_loss(scalar, config.margin_scale)
        return [(scalar, loss, count_groups, optimizer, rankings(config))]
    if name.startswith("ppo"):
        optimizers, batch = make_optimizers(config, language, scalar), rollouts(config)
        value_batch = {"experience": batch["experience"]}
        return [
            (language, make_policy_loss(config, language), count_totals, optimizers[0], batch),
            (scalar, make_value_loss(config, scalar), count_totals, optimizers[1], value_batch),
        ]
    optimizer = make_optimizer(config.optimizer, config.steps, language.axes)
    batch = rows(config.batch_size, config.length, PLAIN if name == "pretrain" else PACKED)
    return [(language, make_language_loss(language), count_tokens, optimizer, batch)]


def lower(mesh, accumulate, definition, loss, count, optimizer, batch):
    """The step's program for the mesh; no parameter and no row of data is ever made."""

    def laid_out(tree, shardings):
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)

    state = jax.eval_shape(lambda p: TrainState.create(p, optimizer), definition.abstract)
    state = laid_out(state, state_shardings(definition, optimizer, mesh))
    by_rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    batch = laid_out(batch, jax.tree.map(lambda _: by_rows, batch))
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(mesh):
        step = make_train_step(loss, count, optimizer, accumulate=accumulate)
        return jax.jit(step, donate_argnums=0).lower(state, batch, key)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_every_step_lowers_for_eight_devices(file):
    config = load(file)
    stages = stages_of(config)
    if not stages:
        pytest.skip(f"the steps of a {type(config).__name__} are not lowered here")
    model = dataclasses.replace(stages["pretrain"].model, loop="scan")  # the same tree, traced once
    for name, stage in stages.items():
        # What the batch does not divide into is split along the matrices.
        sizes = ramp_sizes(getattr(stage, "ramp", None), stage.batch_size)
        shards = math.gcd(8, *sizes)
        mesh_config = MeshConfig(data=2, fsdp=shards // 2, tensor=8 // shards)
        mesh, stage = make_mesh(mesh_config), dataclasses.replace(stage, mesh=mesh_config)
        for parts in pieces(name, stage, model):
            lowered = lower(mesh, stage.accumulate, *parts)
            state, metrics = lowered.out_info
            assert metrics["gradient_norm"].shape == ()
            assert jax.tree.structure(state.params) == jax.tree.structure(parts[0].abstract)
            assert "num_partitions = 8" in lowered.as_text()[:500]
