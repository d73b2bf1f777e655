"""Plans: counts by hand, layouts against real arrays, refusals, and one plan compiled for eight devices."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from gptjax import cli
from gptjax.config import ConfigError, load_experiment
from gptjax.models.functional import ModelDefinition, matmul_flops_per_token
from gptjax.models.heads import LanguageModel
from gptjax.models.matmul import matmul
from gptjax.models.transformer import DecoderConfig
from gptjax.planning.command import read_base, read_mesh
from gptjax.planning.estimate import estimate, needed
from gptjax.planning.operations import count, operations, trace
from gptjax.planning.plan import plan
from gptjax.planning.programs import abstract_mesh, device_bytes
from gptjax.planning.report import plan_json, plan_text
from gptjax.planning.roofline import Roofline, roofline
from gptjax.planning.shapes import Shapes
from gptjax.planning.topology import GIB, parse_topology
from gptjax.planning.work import stages_of, work_of
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages.pretrain import PretrainConfig
from gptjax.stages.sharded import create_state
from gptjax.training.optimizers import make_optimizer

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "experiments"
# Sizes that differ, so that no axis is taken for another.
MODEL = DecoderConfig(vocab_size=96, context_length=24, width=32, layers=3, heads=4, mlp_width=80)


def pretraining(model=MODEL, **changes) -> PretrainConfig:
    given = {"corpora": {"pydoc": 1.0}, "length": 24, "batch_size": 8, "steps": 10, "loss_chunk": 10_000}
    return PretrainConfig(model=model, **given | changes)


def test_topologies():
    pod, gpus, cpus = (parse_topology(text) for text in ("v5p:8x8x8", "h100x512", "cpu:64"))
    assert (pod.devices, gpus.devices, cpus.devices) == (512, 512, 64)
    assert (pod.chip.peak, gpus.chip.peak, cpus.chip.peak) == (459e12, 989e12, None)
    assert parse_topology("v5e:16x16").chip.peak == 197e12


@pytest.mark.parametrize("text", ["v5p:8x8", "h100", "cpu:0", "v5e:16xa", "b300x8"])
def test_topologies_that_are_refused(text):
    with pytest.raises(ConfigError):
        parse_topology(text)


def test_links_of_mesh_axes():
    axes = {"data": 1, "fsdp": 64, "tensor": 8}
    pod, gpus = parse_topology("v5p:8x8x8"), parse_topology("h100x512")
    assert pod.bandwidth(axes, ("tensor",)) == 2 * 90e9  # one ring, both ways
    assert pod.bandwidth(axes, ("fsdp",)) == 2 * 2 * 90e9
    assert pod.bandwidth(axes, ("fsdp", "tensor")) == 3 * 2 * 90e9
    assert gpus.bandwidth(axes, ("tensor",)) == 450e9  # inside a node of eight
    assert gpus.bandwidth(axes, ("fsdp",)) == 50e9
    assert pod.bandwidth(axes, ("fsdp",), one_way=True) == 90e9  # to the next device over one link
    assert gpus.bandwidth({"data": 2, "fsdp": 4, "tensor": 1}, ("data",)) == 450e9


def test_operations_by_hand():
    def program(x, w):
        def turn(carry, _):
            return jnp.einsum("bij,bjk->bik", carry, carry) @ w, None

        return jax.lax.scan(turn, x, length=5)[0]

    x, w = jax.ShapeDtypeStruct((3, 4, 4), jnp.float32), jax.ShapeDtypeStruct((4, 4), jnp.float32)
    found = count(trace(program, (x, w)))
    assert (found.attention, found.maps) == (5 * 2 * 3 * 4 * 4 * 4, 5 * 2 * 3 * 4 * 4 * 4)


@pytest.mark.parametrize(("wanted", "products"), [((0,), 2), ((0, 1), 3)])
def test_gradients_of_frozen_weights_are_not_counted(wanted, products):
    """`matmul` writes out both gradients; the weights' is dropped where nothing asks for it."""

    def loss(x, w):
        return jnp.sum(matmul(x, w) ** 2)

    x, w = jax.ShapeDtypeStruct((3, 4, 5), jnp.float32), jax.ShapeDtypeStruct((5, 6), jnp.float32)
    found = count(trace(jax.value_and_grad(loss, wanted), (x, w)))
    assert found.maps == products * 2 * 3 * 4 * 5 * 6


@pytest.mark.parametrize("loop", ["scan", "unroll"])
def test_operations_are_those_of_the_formula(loop):
    model = dataclasses.replace(MODEL, loop=loop, bias=False, positions="rotary")
    work = work_of(pretraining(model), Shapes())
    (program,) = work.programs
    found = operations(program, abstract_mesh(work.mesh))
    definition = ModelDefinition(LanguageModel, model)
    norms = sum(
        leaf.size
        for leaf in jax.tree.leaves(definition.abstract)
        if leaf.shape[-1:] == (32,) and leaf.ndim < 3
    )
    embedding = definition.abstract["decoder"]["embedding"].size
    in_norms = norms - embedding if definition.abstract["decoder"]["embedding"].shape[-1] == 32 else norms
    formula = matmul_flops_per_token(definition, 24) - 6 * in_norms
    assert found.total / work.tokens == pytest.approx(formula)
    assert found.attention / work.tokens == 12 * 3 * 24 * 32


def test_what_is_computed_again():
    """A block's forward pass once more, but for its last map, whose result nothing needs."""
    mesh = abstract_mesh(MeshConfig())
    plain, again = (
        operations(work_of(pretraining(), Shapes(remat=policy)).programs[0], mesh)
        for policy in ("none", "full")
    )
    assert again.attention == pytest.approx(plain.attention * 4 / 3)
    output = 6 * 8 * 24 * 96 * 32
    last = 3 * 2 * 8 * 24 * 80 * 32
    assert again.maps - plain.maps == pytest.approx((plain.maps - output) / 3 - last)


def test_layouts_are_those_of_real_arrays():
    config = pretraining(mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    work = work_of(config, Shapes())
    mesh, definition = make_mesh(config.mesh), ModelDefinition(LanguageModel, MODEL)
    optimizer = make_optimizer(config.optimizer, config.steps, definition.axes)
    state = create_state(definition, optimizer, mesh, key=jax.random.key(0))
    first = jax.devices()[0]
    held = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(state)
        for shard in leaf.addressable_shards
        if shard.device == first
    )
    assert device_bytes(work.held["state"]) == held


def test_the_estimate_counts_what_the_backward_pass_needs():
    kinds = {}
    for policy in ("none", "dots", "full"):
        work = work_of(pretraining(), Shapes(remat=policy))
        kinds[policy] = estimate(work, work_of(pretraining(), Shapes(remat="none")))
    assert kinds["none"]["activations"] > kinds["dots"]["activations"] >= kinds["full"]["activations"]
    # What enters three blocks, the last norm's parts, its result and the gradient of that: eight arrays
    # of the width, and tokens, masks and statistics without it.
    rows = 8 * 24 * 32 * 4
    assert 3 * rows <= kinds["full"]["activations"] <= 9 * rows
    parameters = 4 * ModelDefinition(LanguageModel, MODEL).parameter_count
    assert kinds["full"]["parameters"] == kinds["full"]["gradients"] == parameters
    assert needed(kinds["full"]) < needed(kinds["none"])


def test_a_device_more_is_a_share_less():
    one = estimate(*[work_of(pretraining(), Shapes(remat="none"))] * 2)
    split = pretraining(mesh=MeshConfig(fsdp=4, tensor=2))
    eight = estimate(*[work_of(split, Shapes(remat="none"))] * 2)
    assert eight["activations"] * 4 < one["activations"]
    assert one["optimiser"] / 9 < eight["optimiser"] < one["optimiser"] / 4


def test_micro_batches_save_activations():
    whole, parts = (estimate(*[work_of(pretraining(accumulate=n), Shapes(remat="none"))] * 2) for n in (1, 4))
    assert parts["activations"] < whole["activations"] / 2
    assert parts["gradients"] == whole["gradients"]


def test_bases_are_found_in_experiments_and_runs(tmp_path):
    shapes = Shapes(EXPERIMENTS)
    large = load_experiment(EXPERIMENTS / "gpt2/large.py").model
    assert shapes.base("runs/gpt2/large", "base") == large
    road = load_experiment(EXPERIMENTS / "quickstart.py")
    assert shapes.base("runs/quickstart/ppo", "policy", "language") == road.pretrain.model
    assert shapes.base("runs/quickstart/reward", "reward", "scalar").width == road.pretrain.model.width
    assert Shapes(EXPERIMENTS, remat="full").base("runs/gpt2/large", "base").remat == "full"
    with pytest.raises(ConfigError, match="--base runs/none=FAMILY:SIZE"):
        shapes.base("runs/none", "base")
    with pytest.raises(ConfigError, match="holds a scalar model"):
        shapes.base("runs/quickstart/reward", "base", "language")
    assert Shapes(known=dict([read_base("x=gpt2:124M")])).base("x", "base").width == 768


def test_a_road_hands_its_own_shapes_on():
    road = load_experiment(EXPERIMENTS / "quickstart.py")
    wide = dataclasses.replace(road.pretrain.model, width=road.pretrain.model.heads * 64)
    road = dataclasses.replace(road, pretrain=dataclasses.replace(road.pretrain, model=wide))
    shapes = Shapes(EXPERIMENTS)
    stages = stages_of(road, shapes, "quickstart")
    assert list(stages) == ["pretrain", "finetune", "reward", "ppo", "ppo_without_ptx"]
    assert work_of(stages["ppo"], shapes).model.width == wide.width


@pytest.mark.slow
def test_ppo_holds_four_models():
    road = load_experiment(EXPERIMENTS / "quickstart.py")
    shapes = Shapes(EXPERIMENTS)
    work = work_of(stages_of(road, shapes, "quickstart")["ppo"], shapes)
    assert list(work.held) == ["policy", "critic", "ema", "reference", "reward"]
    assert [program.name for program in work.programs] == [
        "rollout",
        "experience",
        "policy update",
        "critic update",
    ]
    config = road.ppo
    updates = config.epochs * config.minibatches
    assert [program.calls for program in work.programs] == [1, 1, updates, updates]
    model, slots = road.pretrain.model, config.prompt_length + config.sampling.max_new_tokens
    size = 2 if model.compute_dtype == "bfloat16" else 4
    cache = size * 2 * config.batch_size * slots * model.layers * model.key_heads * model.head_size
    assert estimate(work, work)["cache"] == cache


def test_the_roofline_by_hand():
    topology = parse_topology("h100x8")
    times = roofline(
        topology, {"fsdp": 8}, done=8 * 989e12, model=4 * 989e12, touched=3.35e12 / 2, collectives=[]
    )
    assert times == Roofline(compute=1.0, memory=0.5, links={}, model=0.5)
    assert (times.least, times.most) == (1.0, 1.5) and times.utilisation(times.least) == 0.5


@pytest.fixture(scope="module")
def compiled():
    """A plan for eight devices, compiled in its own process."""
    config = pretraining(dataclasses.replace(MODEL, remat="full"), accumulate=2)
    mesh = {"data": 1, "fsdp": 4, "tensor": 2}
    return plan(config, "tiny", parse_topology("cpu:8"), mesh=mesh, memory=GIB, say=lambda line: None)


@pytest.mark.slow
def test_a_compiled_plan(compiled):
    stage = compiled["pretrain"]
    (facts,) = stage.compiled
    (program,) = stage.work.programs
    assert facts["arguments"] == pytest.approx(sum(map(device_bytes, program.arguments)), rel=0.02)
    assert (
        stage.fits
        and stage.peak == facts["arguments"] + facts["temporary"] + facts["outputs"] - facts["aliased"]
    )
    assert facts["unknown_loops"] == 0
    gathered = [c for c in stage.collectives if c.kind == "all-gather" and "fsdp" in c.axes]
    # Two micro-batches, three layers, forward and again: each gathers the maps of a block.
    assert sum(c.calls for c in gathered) >= 2 * 3 * 2
    assert {axis for c in stage.collectives for axis in c.axes} == {"fsdp", "tensor"}
    assert sum(c.devices for c in stage.collectives if c.axes == ("tensor",)) % 2 == 0


@pytest.mark.slow
def test_a_plan_in_words_and_as_json(compiled):
    topology = parse_topology("cpu:8")
    found = json.loads(json.dumps(plan_json(compiled, topology)))
    assert found["fits"] and found["stages"]["pretrain"]["compiled"][0]["needs"] > 0
    text = plan_text(compiled, topology)
    for word in ("FLOPs per token", "activations", "compiled update", "all-gather over fsdp", "fits: needs"):
        assert word in text


@pytest.mark.slow
def test_what_does_not_fit_is_told_and_what_would_help(capsys):
    command = ["plan", str(EXPERIMENTS / "gpt2/large.py"), "--no-compile", "--memory"]
    assert cli.main([*command, "0.05"]) == 1
    printed = capsys.readouterr().out
    assert "does not fit" in printed and "--model.remat" in printed
    assert cli.main([*command, "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and not found["stages"]["pretrain"]["advice"]
    assert found["stages"]["pretrain"]["steps"] == load_experiment(EXPERIMENTS / "gpt2/large.py").steps


@pytest.mark.slow
def test_a_price_and_a_pod(capsys):
    command = ["plan", str(EXPERIMENTS / "scale/gpt3_175b.py"), "--topology", "h100x512", "--no-compile"]
    assert cli.main([*command, "--price", "2", "--json"]) == 0
    stage = json.loads(capsys.readouterr().out)["stages"]["pretrain"]
    # 6 N a token, attention and the dense half's products beside it.
    assert stage["flops_per_token"] == pytest.approx(6 * 174.6e9, rel=0.05)
    hours = stage["hours"]["least"]
    assert stage["cost"]["least"] == pytest.approx(hours * 512 * 2)
    assert hours * 3600 * 512 * 989e12 >= 3.1e23  # the paper's count
    assert math.isclose(stage["memory"]["optimiser"], 2 * stage["memory"]["parameters"], rel_tol=1e-3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--topology", "cpu:8"], "the mesh has 1 devices and cpu:8 has 8"),
        (["--topology", "cpu:8", "--mesh", "fsdq=8"], "the mesh has no axis 'fsdq'"),
        (["--topology", "cpu:8", "--mesh", "fsdp"], "must read like fsdp=64,tensor=8"),
        (["--topology", "cpu:7", "--mesh", "fsdp=7"], "does not divide into 7 mesh parts"),
        (["--base", "runs/x=gpt5:1T"], "must read like runs/x=gpt2:124M"),
        (["--batch-sise", "8"], "the nearest valid key is 'batch_size'"),
    ],
)
def test_refusals(options, sentence, capsys):
    assert cli.main(["plan", str(EXPERIMENTS / "gpt2/large.py"), "--no-compile", *options]) == 2
    assert sentence in capsys.readouterr().err


def test_what_trains_nothing_has_no_plan(capsys):
    assert cli.main(["plan", str(EXPERIMENTS / "gpt2/zero_shot.py"), "--no-compile"]) == 2
    assert "trains nothing" in capsys.readouterr().err


def test_mesh_of_the_command_line():
    assert read_mesh("fsdp=64, tensor=8") == {"fsdp": 64, "tensor": 8}
