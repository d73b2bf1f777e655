"""Plans of meshes that split layers and positions: the stage's own program, bubble, memory and traffic."""

from dataclasses import replace

import jax
import pytest
import tiny

from gptjax.models.transformer import DecoderConfig
from gptjax.planning.advice import candidates, suggestions
from gptjax.planning.estimate import estimate, needed
from gptjax.planning.operations import Operations, operations
from gptjax.planning.plan import plan
from gptjax.planning.programs import abstract_mesh, lower
from gptjax.planning.report import plan_text
from gptjax.planning.shapes import Shapes
from gptjax.planning.topology import GIB, parse_topology
from gptjax.planning.work import work_of
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages import pretrain
from gptjax.stages.pretrain import PretrainConfig

B, L, D, N, M = 16, 24, 32, 4, 4
MODEL = DecoderConfig(vocab_size=96, context_length=L, width=D, layers=N, heads=4, mlp_width=80)
SPLIT = MeshConfig(stage=2, sequence=2, fsdp=2)


def pretraining(mesh=SPLIT, **changes) -> PretrainConfig:
    given = {"model": MODEL, "length": L, "batch_size": B, "steps": 10, "accumulate": M, "mesh": mesh}
    return PretrainConfig(**{"corpora": {"pydoc": 1.0}, "loss_chunk": 10_000} | given | changes)


def kinds(config, **changes) -> dict[str, int]:
    return estimate(work_of(config, Shapes(**changes)), work_of(config, Shapes(remat="none")))


class Reached(Exception):
    """The stage is about to take its first step."""


@pytest.mark.slow
def test_the_program_is_that_of_the_stage(tmp_path, monkeypatch):
    """What a run jits and what it calls that with, lowered: the text of the plan's own program."""
    steps = []

    def loop(state, step, batch_at, key, settings, watch):
        raise Reached(state, batch_at(0), key)

    monkeypatch.setattr(pretrain, "compile_step", lambda step, mesh: steps.append(step))
    monkeypatch.setattr(pretrain, "run_loop", loop)
    own = tiny.config(tiny.write_data(tmp_path)).pretrain
    model = replace(own.model, layers=2)
    config = replace(own, model=model, mesh=SPLIT, batch_size=8, accumulate=2, compressors=False)
    with pytest.raises(Reached) as reached:
        pretrain.run(config, tmp_path / "run")
    mesh = make_mesh(SPLIT)
    with jax.set_mesh(mesh):
        text = jax.jit(steps[0], donate_argnums=0).lower(*reached.value.args).as_text()
    (program,) = work_of(config, Shapes(), mesh).programs
    assert lower(program, mesh).as_text() == text
    assert "collective_permute" in text


def counted(mesh: MeshConfig) -> Operations:
    (program,) = work_of(pretraining(mesh), Shapes()).programs
    return operations(program, abstract_mesh(mesh))


def test_the_bubble_by_hand():
    """Four micro-batches take two stages five ticks, and every layer works in each: 5/4 of its work."""
    work = work_of(pretraining(MeshConfig(stage=2, fsdp=2)), Shapes())
    assert (work.ticks, work.bubble) == (5, 1 / 5)
    straight, piped = counted(MeshConfig(fsdp=2)), counted(work.mesh)
    head = 6 * B * L * D * MODEL.vocab_size
    assert piped.attention == pytest.approx(straight.attention * 5 / 4)
    assert piped.maps - head == pytest.approx((straight.maps - head) * 5 / 4)


@pytest.mark.slow
def test_the_ring_scores_its_keys_once_more():
    """What a `shard_map` leaves to the partitioner is counted once, on however many devices."""
    one, ring = counted(MeshConfig()), counted(MeshConfig(fsdp=4, sequence=2))
    assert ring.maps == pytest.approx(one.maps)
    assert ring.attention == pytest.approx(one.attention * 7 / 6)


@pytest.mark.parametrize("mesh", [SPLIT, pytest.param(MeshConfig(stage=4), marks=pytest.mark.slow)], ids=str)
def test_a_stage_keeps_what_enters_its_layers_at_every_tick(mesh):
    found = kinds(pretraining(mesh), remat="full")["activations"]
    rows = B // mesh.fsdp * (L // mesh.sequence) * D * 4
    ticks = (M + mesh.stage - 1) / M
    entering = N / mesh.stage * ticks * rows
    # Beside it what enters the pipeline and leaves it, and the last norm's and the loss's, eight such arrays.
    assert entering <= found <= entering + 9 * rows


@pytest.mark.slow
def test_what_positions_and_stages_save():
    whole, parts = (kinds(pretraining(mesh)) for mesh in (MeshConfig(), MeshConfig(sequence=4)))
    assert parts["activations"] * 4 < whole["activations"]  # and the scores, which the ring does not keep
    assert parts["logits"] * 4 == whole["logits"]
    layers = kinds(pretraining(MeshConfig(stage=4)))
    assert whole["optimiser"] / 4 < layers["optimiser"] < whole["optimiser"] / 2  # embeddings lie on all


def test_layers_as_many_as_heads_are_not_split_over_tensor():
    """23 positions do not divide, so that nothing of a layer is: as many layers as heads tell nothing."""
    whole, split = (kinds(pretraining(MeshConfig(tensor=n), length=L - 1), remat="full") for n in (1, 2))
    assert split["activations"] == whole["activations"]


@pytest.mark.parametrize(("remat", "gathered"), [("full", 0), ("none", 2)])
def test_the_residual_stream_is_split_over_tensor(remat, gathered):
    """Between sublayers everything is; the gathered states that enter a layer's maps stay whole."""
    whole, two, four = (
        kinds(pretraining(MeshConfig(tensor=n)), remat=remat)["activations"] for n in (1, 2, 4)
    )
    rows = B // M * L * D * 4
    # Whole on each device too: the gradient of the last hidden states, and what has no axis of the width.
    staying = whole - 2 * (whole - two)
    assert whole - two == 2 * (two - four)
    assert (1 + gathered * N) * rows <= staying < (2 + gathered * N) * rows


def offered(config) -> dict[str, list[MeshConfig]]:
    """Axis -> meshes that are offered and that the configuration takes."""
    taken: dict[str, list[MeshConfig]] = {}
    for kind, _, make in candidates(config, Shapes(), MODEL):
        try:
            changed, _ = make()
        except ValueError:
            continue
        taken.setdefault(kind, []).append(changed.mesh)
    return taken


def test_advice_splits_positions_and_layers_where_they_divide():
    meshes = offered(pretraining(MeshConfig(data=2, fsdp=2)))
    assert meshes["sequence"][0] == MeshConfig(fsdp=2, sequence=2)
    assert meshes["stage"] == [MeshConfig(fsdp=2, stage=2)]  # of twice the devices 16 rows have too few
    meshes = offered(pretraining(MeshConfig(fsdp=2), batch_size=32))
    assert meshes["stage"][0] == MeshConfig(stage=2)
    fused = replace(MODEL, attention="xla", layers=3)
    meshes = offered(pretraining(MeshConfig(data=2, fsdp=2), model=fused, batch_size=64))
    assert not {"sequence", "stage"} & set(meshes)


@pytest.mark.slow
def test_advice_that_fits():
    """One row a device: nothing but its positions is left to split."""
    config = pretraining(MeshConfig(fsdp=4), batch_size=4, accumulate=1, model=replace(MODEL, remat="full"))

    def measure(changed, shapes) -> int:
        return needed(estimate(work_of(changed, shapes), work_of(changed, Shapes(remat="none"))))

    limit = measure(replace(config, mesh=MeshConfig(fsdp=4, sequence=2)), Shapes())
    assert measure(config, Shapes()) > limit
    found = dict(suggestions(config, Shapes(), config.model, measure, limit))
    assert found["--mesh.sequence 2"] == limit


@pytest.fixture(scope="module")
def compiled():
    """(its plan, its words) for eight devices, compiled in its own process."""
    topology = parse_topology("cpu:8")
    plans = plan(pretraining(), "tiny", topology, memory=GIB, say=lambda line: None)
    return plans["pretrain"], plan_text(plans, topology)


@pytest.mark.slow
def test_a_compiled_pipeline_sends_what_the_schedule_says(compiled):
    found, text = compiled
    sent = {c.axes: c for c in found.collectives if c.kind == "collective-permute"}
    assert set(sent) == {("stage",), ("sequence",)}
    assert sent["stage",].calls == 2 * 5  # each tick hands on, forward and backward
    assert sent["stage",].bytes == 2 * 5 * (B // M // 2) * (L // 2) * D * 4
    assert sent["sequence",].calls % (5 * N // 2) == 0  # as often at every tick of each of a stage's layers
    assert found.compiled[0]["unknown_loops"] == 0 and found.fits
    assert "collective-permute over stage" in text and "collective-permute over sequence" in text
    assert "2 stages, 4 micro-batches, bubble 20.0%" in text and "more in the bubble" in text
    assert found.idle == pytest.approx(found.done.model - counted(MeshConfig(sequence=2, fsdp=2)).model)
