"""Every experiment file resolves, says what it is, and survives JSON."""

from pathlib import Path

import jax
import pytest

from gptjax.config import experiment_docstring, from_json, load_experiment, to_json
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages.language_loss import count_tokens, make_language_loss
from gptjax.stages.sharded import state_shardings
from gptjax.training.optimizers import make_optimizer
from gptjax.training.step import TrainState, make_train_step

ROOT = Path(__file__).parents[1]
FILES = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "experiments").rglob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_it_resolves_and_round_trips(file):
    config = load_experiment(ROOT / file)
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize("file", FILES)
def test_its_docstring_names_paper_time_and_command(file):
    text = experiment_docstring(ROOT / file)
    for heading in ("Paper:", "Expected:", "Time:", "Command:"):
        assert f"\n{heading}" in text, f"{file} says nothing after '{heading}'"


@pytest.mark.parametrize("file", FILES)
def test_its_pretraining_step_lowers_on_eight_devices(file):
    config = load_experiment(ROOT / file).pretrain
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    definition = ModelDefinition(LanguageModel, config.model)
    optimizer = make_optimizer(config.optimizer, config.steps, definition.axes)
    step = make_train_step(make_language_loss(definition), count_tokens, optimizer)
    abstract = jax.eval_shape(lambda params: TrainState.create(params, optimizer), definition.abstract)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        state_shardings(definition, optimizer, mesh),
    )
    shape = (config.batch_size, config.length)
    batch = {name: jax.ShapeDtypeStruct(shape, "int32") for name in ("tokens", "targets")}
    batch["loss_mask"] = jax.ShapeDtypeStruct(shape, "float32")
    with jax.set_mesh(mesh):
        lowered = jax.jit(step, donate_argnums=0).lower(state, batch, jax.random.key(0))
    assert "sharding" in lowered.as_text()
