"""The mesh of devices: data parallel, fully sharded data parallel, tensor parallel."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gptjax.config import ConfigError, configclass
from gptjax.environment import find_devices
from gptjax.ranges import Count

MESH_AXES = ("data", "fsdp", "tensor")


@configclass
class MeshConfig:
    """How many devices each mesh axis spans; their product is the number of devices used.

    Attributes:
        data: copies of the model, each with its own part of the batch.
        fsdp: devices that share one copy's parameters and split its batch.
        tensor: devices that split heads, feed-forward width and vocabulary.
    """

    data: Count = 1
    fsdp: Count = 1
    tensor: Count = 1

    @property
    def size(self) -> int:
        """Number of devices."""
        return self.data * self.fsdp * self.tensor

    @property
    def batch_shards(self) -> int:
        """Number of parts the batch is cut into."""
        return self.data * self.fsdp


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh over the first `config.size` devices.

    Raises:
        ConfigError: fewer devices are there than the mesh asks for, or none that JAX can use, or the mesh
            leaves a process without a device.
    """
    devices = find_devices()
    if config.size > len(devices):
        raise ConfigError(
            f"the mesh data={config.data} x fsdp={config.fsdp} x tensor={config.tensor} needs {config.size} "
            f"devices, but JAX sees {len(devices)} ({devices[0].platform}): lower mesh.data, mesh.fsdp or "
            "mesh.tensor"
        )
    busy = {device.process_index for device in devices[: config.size]}
    if len(busy) < jax.process_count():
        raise ConfigError(
            f"the mesh of {config.size} devices leaves {jax.process_count() - len(busy)} of "
            f"{jax.process_count()} processes without one: raise mesh.data, or start fewer processes"
        )
    shape = (config.data, config.fsdp, config.tensor)
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[: config.size])


def check_batch(batch_size: int, mesh: MeshConfig, accumulate: int = 1) -> None:
    """Refuse a batch that does not divide over the mesh and the micro-batches.

    Raises:
        ValueError: naming both numbers.
    """
    parts = mesh.batch_shards * accumulate
    if batch_size % parts:
        raise ValueError(
            f"batch_size = {batch_size} does not divide into {mesh.batch_shards} mesh parts "
            f"(mesh.data x mesh.fsdp) times {accumulate} micro-batches: use a multiple of {parts}"
        )


def place(batch, mesh: Mesh):
    """A batch as global arrays, split over `data` and `fsdp`.

    Every process gives the whole batch, and its devices take the rows that fall to them. So a row's place
    depends on the mesh alone, not on how many processes share its devices.

    Args:
        batch: tree of numpy arrays `[rows, ...]`, the same in every process.
        mesh: from `make_mesh`.

    Returns:
        the tree with `jax.Array` leaves of the same shapes.
    """
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def put(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, batch)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that puts a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
