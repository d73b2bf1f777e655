"""The mesh and its rules, and one training step that is the same on every mesh."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gptjax.config import ConfigError
from gptjax.models.families import llama
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.sharding.mesh import MeshConfig, check_batch, make_mesh, place, replicated
from gptjax.sharding.rules import constrain, parameter_shardings, partition_spec, parts_to_rows
from gptjax.stages.language_loss import count_tokens, make_language_loss
from gptjax.stages.sharded import check_decoder, compile_step, create_state, order_microbatches
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import accumulated_gradient, apply_update

MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(fsdp=8),
    "rows": MeshConfig(data=2, fsdp=2, tensor=2),
    "sequence2": MeshConfig(sequence=2),
    "sequence4": MeshConfig(sequence=4),
    "sequence8": MeshConfig(sequence=8),
    "sequence_data": MeshConfig(data=4, sequence=2),
    "sequence_fsdp": MeshConfig(fsdp=2, sequence=4),
    "sequence_tensor": MeshConfig(sequence=4, tensor=2),
    "sequence_all": MeshConfig(fsdp=2, sequence=2, tensor=2),
    "stage2": MeshConfig(stage=2),
    "stage4": MeshConfig(stage=4),
    "stage_data": MeshConfig(stage=4, data=2),
    "stage_fsdp": MeshConfig(stage=2, fsdp=4),
    "stage_tensor": MeshConfig(stage=4, tensor=2),
    "stage_sequence": MeshConfig(stage=2, sequence=4),
    "stage_all": MeshConfig(stage=2, fsdp=2, sequence=2),
}
FAST = {"rows", "stage_all"}


def test_too_few_devices_are_named():
    with pytest.raises(
        ConfigError, match=r"the mesh data=4 x fsdp=4 needs 16 devices, but JAX sees 8 \(cpu\)"
    ):
        make_mesh(MeshConfig(data=4, fsdp=4))


def test_mesh_has_its_axes_and_devices():
    mesh = make_mesh(MeshConfig(data=2, tensor=2))
    assert dict(mesh.shape) == {"stage": 1, "data": 2, "fsdp": 1, "sequence": 1, "tensor": 2}
    assert mesh.devices.size == 4
    with pytest.raises(ValueError, match="fsdp\n.*greater than or equal to 1"):
        MeshConfig(fsdp=0)


def test_a_batch_that_does_not_divide_is_refused():
    check_batch(24, MeshConfig(data=2, fsdp=2, tensor=2), accumulate=3)
    with pytest.raises(
        ValueError, match="batch_size = 20 does not divide into 4 mesh parts .* a multiple of 12"
    ):
        check_batch(20, MeshConfig(data=2, fsdp=2), accumulate=3)


def test_positions_and_layers_are_split_by_pretraining_alone():
    check_batch(8, MeshConfig(data=2, sequence=4, stage=2), pretraining=True)
    for axes, numbers in (
        ({"sequence": 4}, "= 4 and mesh.stage = 1"),
        ({"stage": 2}, "= 1 and mesh.stage = 2"),
    ):
        with pytest.raises(
            ValueError, match=f"mesh.sequence {numbers} split positions and layers, which pretr"
        ):
            check_batch(8, MeshConfig(data=2, **axes))


@pytest.mark.parametrize(
    "mesh, changes, match",
    [
        (
            MeshConfig(sequence=8),
            {"length": 12},
            "length = 12 does not .* mesh.stage = 8 x 1: .* multiple of 8",
        ),
        (MeshConfig(sequence=2, stage=4), {"length": 12}, "length = 12 does not divide .* a multiple of 8"),
        (
            MeshConfig(sequence=8),
            {"attention": "xla"},
            "model.attention = 'xla' attends within one device, but",
        ),
        (
            MeshConfig(stage=4),
            {"layers": 6},
            "model.layers = 6 does not divide over mesh.stage = 4: use a mult",
        ),
        (MeshConfig(stage=4), {"attention_band": 4}, "= 4 in pairs of a dense and a banded layer: .* of 8"),
    ],
)
def test_a_decoder_that_the_mesh_cannot_split_is_refused(mesh, changes, match):
    model = llama("7B", vocab_size=40, context_length=16, width=16, layers=4, heads=4, mlp_width=32)

    def check(length=16, **changes):
        check_decoder(replace(model, **changes), length, mesh)

    check()
    with pytest.raises(ValueError, match=match):
        check(**changes)


def test_rules_by_hand():
    assert partition_spec(("layers", "embed", "heads")) == PartitionSpec("stage", "fsdp", "tensor")
    assert partition_spec(("batch", "length", None)) == PartitionSpec(("data", "fsdp"), "sequence", None)


def test_a_logical_axis_without_a_rule_is_an_error():
    with pytest.raises(KeyError, match="'experts' has no rule"):
        partition_spec(("layers", "experts"))
    with jax.set_mesh(make_mesh(MeshConfig(data=8))), pytest.raises(KeyError, match="'experts' has no rule"):
        constrain(jnp.ones((8, 2)), ("batch", "experts"))


def test_a_parameter_that_does_not_divide_is_named():
    abstract = {"mlp": {"up": jax.ShapeDtypeStruct((16, 30), jnp.float32)}}
    axes = {"mlp": {"up": ("embed", "mlp")}}
    with pytest.raises(
        ConfigError, match=r"mlp\.up: its axis 'mlp' of size 30 does not divide over mesh\.tensor = 4"
    ):
        parameter_shardings(make_mesh(MeshConfig(tensor=4)), abstract, axes)


def test_place_splits_rows_and_keeps_values():
    rows = np.arange(32).reshape(16, 2)
    placed = place({"tokens": rows}, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))["tokens"]
    np.testing.assert_array_equal(placed, rows)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(4, 2)}
    placed = place(rows, make_mesh(MeshConfig(data=4, sequence=2)))
    np.testing.assert_array_equal(placed, rows)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(4, 1)}


def test_constrain_without_a_mesh_changes_nothing():
    x = jnp.ones((3, 2))
    assert constrain(x, ("batch", None)) is x


def test_parts_of_rows_become_rows_where_they_lie():
    x = np.arange(64).reshape(4, 8, 2)
    assert parts_to_rows(x) is x
    with jax.set_mesh(make_mesh(MeshConfig(data=2, sequence=4))):
        rows = jax.jit(parts_to_rows)(x)
    np.testing.assert_array_equal(rows, np.concatenate(np.split(x, 4, axis=1)))
    assert rows.addressable_shards[0].data.shape == (2, 2, 2)


@pytest.fixture(scope="module")
def problem():
    """A LLaMA-style model, its parameters, a batch of packed rows with a ragged loss mask, and AdamW.

    No biases: the gradient of a key bias is zero, and Adam would blow its rounding up to a whole step.
    """
    config = llama(
        "7B", vocab_size=40, context_length=8, width=16, layers=4, heads=4, kv_heads=2, mlp_width=32
    )
    definition, rng = ModelDefinition(LanguageModel, config), np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), definition.abstract)
    batch = {name: rng.integers(0, 40, (16, 8)).astype(np.int32) for name in ("tokens", "targets")}
    batch["loss_mask"] = (rng.random((16, 8)) < 0.6).astype(np.float32)
    starts = np.sort(rng.integers(0, 8, (16, 2)), axis=1)
    batch["segment_ids"] = 1 + (np.arange(8) >= starts[:, :, None]).sum(1).astype(np.int32)
    batch["positions"] = np.broadcast_to(np.arange(8, dtype=np.int32), (16, 8))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), 100, definition.axes)
    return definition, params, batch, optimizer


def one_step(problem, mesh_config):
    """State after one step with two micro-batches, and (loss, metrics, gradient), on a mesh."""
    definition, params, batch, optimizer = problem
    in_turn, flowing = order_microbatches(mesh_config, accumulate=2)
    mesh, loss_fn = make_mesh(mesh_config), make_language_loss(definition, chunk=16, microbatches=flowing)

    def step(state, batch, key):
        loss, metrics, gradient = accumulated_gradient(
            loss_fn, state.params, batch, count_tokens(batch), key, accumulate=in_turn
        )
        return apply_update(state, gradient, loss, optimizer)[0], (loss, metrics, gradient)

    state = create_state(definition, optimizer, mesh, params=jax.tree.map(jnp.asarray, params))
    return compile_step(step, mesh)(state, place(batch, mesh), jax.random.key(0))


@pytest.fixture(scope="module")
def on_one_device(problem):
    return jax.device_get(one_step(problem, MeshConfig()))


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in MESHES]
)
def test_one_device_equals_several(problem, on_one_device, name):
    state, results = one_step(problem, MESHES[name])
    expected_state, expected = on_one_device
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)  # noqa: E731
    jax.tree.map(close, results, expected)
    jax.tree.map(close, state.params, expected_state.params)
    moved = np.abs(np.asarray(state.params["unembedding"]) - problem[1]["unembedding"]).max()
    assert moved > 5e-4, "the step must have moved the parameters"


def test_parameters_and_moments_lie_in_shards(problem):
    definition, params, _, optimizer = problem
    mesh = make_mesh(MESHES["rows"])
    state = create_state(definition, optimizer, mesh, params=jax.tree.map(jnp.asarray, params))
    kernels = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if jax.tree_util.keystr(path).endswith("['up']['kernel']")
    ]
    assert len(kernels) == 3  # the parameter and Adam's two moments
    for kernel in kernels:
        assert kernel.shape == (4, 16, 32)
        assert kernel.addressable_shards[0].data.shape == (4, 8, 16)
    assert state.step.sharding == replicated(mesh)


@pytest.mark.slow
def test_dropout_in_a_pipeline_follows_its_key(problem):
    definition, params, batch, _ = problem
    definition = ModelDefinition(LanguageModel, replace(definition.config, dropout=0.5))
    loss_fn = jax.jit(make_language_loss(definition, microbatches=2))
    mesh = make_mesh(MeshConfig(stage=2, data=2))
    with jax.set_mesh(mesh):
        placed = place(batch, mesh)
        losses = [float(loss_fn(params, placed, 1.0, jax.random.key(seed))[0]) for seed in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert losses[2] != losses[0]


def test_each_stage_holds_its_layers(problem):
    definition, params, _, optimizer = problem
    mesh = make_mesh(MeshConfig(stage=4, tensor=2))
    state = create_state(definition, optimizer, mesh, params=jax.tree.map(jnp.asarray, params))
    kernel = state.params["decoder"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (1, 16, 16)
