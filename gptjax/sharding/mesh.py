"""The mesh of devices: data parallel, fully sharded data parallel, sequence, tensor and pipeline parallel."""

import math

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gptjax.config import ConfigError, configclass
from gptjax.environment import find_devices
from gptjax.ranges import Count

# The first spans the slowest links, the last, whose devices talk most, the fastest.
MESH_AXES = ("stage", "data", "fsdp", "sequence", "tensor")


@configclass
class MeshConfig:
    """How many devices each mesh axis spans; their product is the number of devices used.

    Attributes:
        stage: groups of devices that hold some of the layers each (pretraining only).
        data: copies of the model, each with its own part of the batch.
        fsdp: devices that share one copy's parameters and split its batch.
        sequence: devices that split the positions of a row (pretraining only).
        tensor: devices that split heads, feed-forward width and vocabulary.
    """

    stage: Count = 1
    data: Count = 1
    fsdp: Count = 1
    sequence: Count = 1
    tensor: Count = 1

    @property
    def size(self) -> int:
        """Number of devices."""
        return math.prod(getattr(self, axis) for axis in MESH_AXES)

    @property
    def batch_shards(self) -> int:
        """Number of parts the batch is cut into."""
        return self.data * self.fsdp

    @property
    def for_pretraining(self) -> bool:
        """Whether it splits positions or layers, which pretraining alone can."""
        return self.sequence * self.stage > 1

    def __str__(self) -> str:
        return " x ".join(f"{axis}={getattr(self, axis)}" for axis in MESH_AXES if getattr(self, axis) > 1)


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh over the first `config.size` devices.

    Raises:
        ConfigError: fewer devices are there than the mesh asks for, or none that JAX can use, or the mesh
            leaves a process without a device.
    """
    devices = find_devices()
    if config.size > len(devices):
        raise ConfigError(
            f"the mesh {config} needs {config.size} devices, but JAX sees {len(devices)} "
            f"({devices[0].platform}): lower one of its axes"
        )
    busy = {device.process_index for device in devices[: config.size]}
    if len(busy) < jax.process_count():
        raise ConfigError(
            f"the mesh of {config.size} devices leaves {jax.process_count() - len(busy)} of "
            f"{jax.process_count()} processes without one: raise mesh.data, or start fewer processes"
        )
    shape, types = tuple(getattr(config, axis) for axis in MESH_AXES), (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices[: config.size])


def check_any_stage(mesh: MeshConfig) -> None:
    """Refuse a mesh that splits the positions of a row or the layers, which pretraining alone can.

    Raises:
        ValueError: naming the axes.
    """
    if mesh.for_pretraining:
        raise ValueError(
            f"mesh.sequence = {mesh.sequence} and mesh.stage = {mesh.stage} split positions and layers, "
            "which pretraining alone can: leave them at 1 and raise mesh.data, mesh.fsdp or mesh.tensor"
        )


def check_batch(batch_size: int, mesh: MeshConfig, accumulate: int = 1, *, pretraining: bool = False) -> None:
    """Refuse a batch that does not divide over the mesh and the micro-batches.

    Args:
        batch_size: rows of an update.
        mesh: from the stage's configuration.
        accumulate: micro-batches.
        pretraining: allow what `check_any_stage` refuses.

    Raises:
        ValueError: naming both numbers.
    """
    if not pretraining:
        check_any_stage(mesh)
    parts = mesh.batch_shards * accumulate
    if batch_size % parts:
        raise ValueError(
            f"batch_size = {batch_size} does not divide into {mesh.batch_shards} mesh parts "
            f"(mesh.data x mesh.fsdp) times {accumulate} micro-batches: use a multiple of {parts}"
        )


def place(batch, mesh: Mesh):
    """A batch as global arrays, its rows split over `data` and `fsdp`, their positions over `sequence`.

    Every process gives the whole batch, and its devices take the rows that fall to them. So a row's place
    depends on the mesh alone, not on how many processes share its devices.

    Args:
        batch: tree of numpy arrays `[rows, ...]`, the same in every process; where `sequence` is above 1 the
            second axis is that of positions.
        mesh: from `make_mesh`.

    Returns:
        the tree with `jax.Array` leaves of the same shapes.
    """

    def put(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, batch_sharding(mesh, x.ndim), lambda index: x[index])

    return jax.tree.map(put, batch)


def to_host(tree):
    """Whole numpy arrays of a tree whose arrays may lie on several processes' devices; each must call it.

    Args:
        tree: leaves are arrays, the same on every process.

    Returns:
        the tree with numpy leaves of the same shapes.
    """

    def whole(x):
        # Of these alone no process holds every row.
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(whole, tree)


def batch_sharding(mesh: Mesh, axes: int) -> NamedSharding:
    """How `place` lays out an array with so many axes."""
    return NamedSharding(mesh, PartitionSpec(*(("data", "fsdp"), "sequence")[:axes]))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that puts a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
