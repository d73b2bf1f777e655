"""The one table from logical axis names to mesh axes.

A logical name without a rule is an error: nothing is replicated by accident.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gptjax.config import ConfigError

RULES: dict[str, str | tuple[str, ...] | None] = {
    # activations
    "batch": ("data", "fsdp"),
    "length": "sequence",
    "residual": ("sequence", "tensor"),  # positions of what lies between sublayers
    # parameters
    "layers": "stage",  # the stacked layers' axis
    "embed": "fsdp",  # model width
    "heads": "tensor",  # query heads x head size
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "position": None,
    "norm": None,  # gains and biases of norms: a few kilobytes
    "scalar": None,  # reward and value heads
    "token_type": None,  # BERT's two segments
    "class": None,  # classification heads
    "rank": None,  # of low-rank adapters: a handful
}
# What shares the tokens of a batch; devices along `tensor` see the same ones.
ROW_AXES = ("sequence", "stage", "data", "fsdp")


def partition_spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """The mesh axes of an array with these logical axes; None is an axis that is never split.

    Raises:
        KeyError: a name has no rule.
    """
    for name in axes:
        if name is not None and name not in RULES:
            raise KeyError(f"logical axis {name!r} has no rule in gptjax/sharding/rules.py: add one")
    return PartitionSpec(*(None if name is None else RULES[name] for name in axes))


def parameter_shardings(mesh: Mesh, abstract, axes):
    """One `NamedSharding` per parameter.

    Args:
        mesh: from `make_mesh`.
        abstract: tree with leaves that have a `.shape`.
        axes: the same tree with tuples of logical axis names.

    Raises:
        ConfigError: a parameter's axis is not a multiple of its mesh axis.
    """

    def one(path, leaf, names):
        for size, name, target in zip(leaf.shape, names, partition_spec(names), strict=True):
            if target is not None and size % mesh.shape[target]:
                raise ConfigError(
                    f"parameter {jax.tree_util.keystr(path, simple=True, separator='.')}: its axis {name!r} "
                    f"of size {size} does not divide over mesh.{target} = {mesh.shape[target]}"
                )
        return NamedSharding(mesh, partition_spec(names))

    return jax.tree_util.tree_map_with_path(one, abstract, axes)


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """Tell the partitioner how an activation lies on the ambient mesh; without a mesh nothing happens.

    Inside a `jax.shard_map` the axes that are split by hand already are left out.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    targets = (_by_partitioner(target, mesh) for target in partition_spec(axes))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*targets))


def between_sublayers(x_BxLxD: jax.Array) -> jax.Array:
    """The residual stream, its positions split over `tensor` too, where they divide.

    Norms, dropout and residual sums then work on a device's own positions (sequence parallelism; Korthikanti
    et al. 2022, arXiv 2205.05198, section 4.2.2). A single token that is decoded stays whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x_BxLxD
    axes = _by_partitioner(RULES["residual"], mesh)
    divides = x_BxLxD.shape[1] % math.prod(mesh.shape[axis] for axis in axes) == 0
    return constrain(x_BxLxD, ("batch", "residual" if divides else "length", None))


def into_sublayer(x_BxLxD: jax.Array) -> jax.Array:
    """Gathers the stream along `tensor`, whose devices have heads or channels of their own.

    The gradient's sum over them is scattered (the paper's g).
    """
    return x_BxLxD if axis_devices("tensor") == 1 else _gather(x_BxLxD)


def out_of_sublayer(x_BxLxD: jax.Array) -> jax.Array:
    """Scatters the sum over `tensor` of what a sublayer's devices made; the gradient is gathered (g bar)."""
    return x_BxLxD if axis_devices("tensor") == 1 else _scatter(x_BxLxD)


def _whole(x_BxLxD):
    return constrain(x_BxLxD, ("batch", "length", None))


# The transpose of a constraint is the same one; these two are each other's.
_gather, _scatter = jax.custom_vjp(_whole), jax.custom_vjp(between_sublayers)
_gather.defvjp(lambda x: (_whole(x), None), lambda _, gradient: (between_sublayers(gradient),))
_scatter.defvjp(lambda x: (between_sublayers(x), None), lambda _, gradient: (_whole(gradient),))


def _by_partitioner(target, mesh):
    """The mesh axes of a rule without those that a `jax.shard_map` around has split by hand."""
    if isinstance(target, tuple):
        return tuple(axis for axis in target if axis not in mesh.manual_axes)
    return None if target in mesh.manual_axes else target


def axis_devices(axis: str) -> int:
    """How many devices the ambient mesh has along an axis; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[axis]


def row_devices() -> int:
    """How many devices of the ambient mesh share the rows that `parts_to_rows` makes; 1 without a mesh."""
    return math.prod(axis_devices(axis) for axis in ROW_AXES)


def parts_to_rows(x_BxL: jax.Array) -> jax.Array:
    """Makes a row of each part of a row that a device of `sequence` holds, and each stage of a pipeline.

    For sums over all tokens, which may then be taken by rows where the tokens lie. Nothing is sent.

    Returns:
        `[S B, L / S, ...]` with S parts, the rows of the first parts first; x itself where S is 1.
    """
    parts = axis_devices("sequence") * axis_devices("stage")
    if parts == 1:
        return x_BxL
    batch, length = x_BxL.shape[:2]
    x = jnp.swapaxes(x_BxL.reshape(batch, parts, length // parts, *x_BxL.shape[2:]), 0, 1)
    x = x.reshape(parts * batch, length // parts, *x_BxL.shape[2:])
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROW_AXES))
