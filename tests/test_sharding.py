"""The mesh, its rules, and what they refuse."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gptjax.config import ConfigError
from gptjax.models.families import llama
from gptjax.sharding.mesh import MeshConfig, check_batch, make_mesh, place
from gptjax.sharding.rules import constrain, parameter_shardings, partition_spec, parts_to_rows
from gptjax.stages.sharded import check_decoder


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
