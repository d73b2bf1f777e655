"""Every experiment that trains lowers for a pod without devices: all programs of all its stages."""

import dataclasses
import math
from pathlib import Path

import jax
import pytest

from gptjax.config import ConfigError, load_experiment, run_name
from gptjax.models.families import llama
from gptjax.planning.programs import abstract_mesh, lower
from gptjax.planning.shapes import Shapes
from gptjax.planning.work import stages_of, work_of
from gptjax.sharding.mesh import MeshConfig

ROOT = Path(__file__).parent.parent
FILES = sorted(
    str(file.relative_to(ROOT))
    for file in ROOT.glob("experiments/**/*.py")
    if file.name not in ("external_data.py", "sweep.py")
)
# What is imported and not trained: SmolLM2-135M.
IMPORTED = llama(
    "7B",
    vocab_size=49_152,
    context_length=2048,
    width=576,
    layers=30,
    heads=9,
    kv_heads=3,
    mlp_width=1536,
    tied=True,
)
KNOWN = {"runs/smollm2": ("language", IMPORTED)}


def spread(config):
    """The stage on the most of eight devices that its batch divides over."""
    for batch in (8, 4, 2, 1):
        mesh = MeshConfig(data=math.gcd(batch, 2), fsdp=batch // math.gcd(batch, 2))
        try:
            return dataclasses.replace(config, mesh=mesh)
        except ValueError:
            continue
    raise AssertionError(f"{type(config).__name__} takes no mesh at all")


def planned(file):
    """(stages, shapes) of an experiment; skips where the data that it names is absent."""
    try:
        config = load_experiment(ROOT / file)
        # Layers in a loop are the same parameters and programs, traced once.
        shapes = Shapes(ROOT / "experiments", KNOWN, loop="scan")
        return stages_of(config, shapes, run_name(ROOT / file)), shapes
    except ConfigError as error:
        if "GPTJAX_DATA" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_every_experiment_lowers_for_an_abstract_mesh(file):
    stages, shapes = planned(file)
    if not stages:
        pytest.skip("it trains nothing")
    for own in stages.values():
        config = own if own.mesh.size > 8 else spread(own)
        mesh = abstract_mesh(config.mesh)
        work = work_of(config, shapes)
        for program in work.programs:
            lowered = lower(program, mesh, ("tpu",))
            assert f"num_partitions = {mesh.size}" in lowered.as_text()[:500]
            if program.training is not None:
                state, metrics = lowered.out_info
                assert metrics["gradient_norm"].shape == ()
                assert jax.tree.structure(state) == jax.tree.structure(program.arguments[0])
