"""What to change when a run does not fit, with what each change would leave by the estimate."""

import dataclasses
from collections.abc import Callable, Iterator

from gptjax.config import ConfigError
from gptjax.planning.shapes import Shapes
from gptjax.sharding.mesh import MeshConfig


def with_model(config, shapes: Shapes, **changes) -> tuple[object, Shapes] | None:
    """The stage with another setting of its model; None where a base brings the model."""
    if not hasattr(config, "model"):
        return None
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes)), shapes


def candidates(config, shapes: Shapes, model) -> Iterator[tuple[str, Callable]]:
    """(what to write on the command line, what makes the stage's configuration and shapes)."""
    order = ["none", "dots", "full"]
    for policy in order[order.index(model.remat) + 1 :]:
        yield f"--model.remat {policy}", lambda p=policy: with_model(config, shapes, remat=p)
    if model.compute_dtype == "float32":
        yield "--model.compute-dtype bfloat16", lambda: with_model(config, shapes, compute_dtype="bfloat16")
    for factor in (2, 4, 8, 16):
        parts = config.accumulate * factor
        yield f"--accumulate {parts}", lambda n=parts: (dataclasses.replace(config, accumulate=n), shapes)
    if getattr(config, "loss_chunk", 0) > 1024:
        yield "--loss-chunk 1024", lambda: (dataclasses.replace(config, loss_chunk=1024), shapes)
    for mesh in other_meshes(config.mesh):
        text = f"--mesh data={mesh.data},fsdp={mesh.fsdp},tensor={mesh.tensor}"
        yield text, lambda m=mesh: (dataclasses.replace(config, mesh=m), shapes)


def other_meshes(mesh: MeshConfig) -> Iterator[MeshConfig]:
    """As many devices, fewer copies, more split matrices; then twice and four times as many devices."""
    if mesh.data > 1:
        yield dataclasses.replace(mesh, data=1, fsdp=mesh.fsdp * mesh.data)
    if mesh.tensor < 8 and mesh.fsdp % 2 == 0:
        yield dataclasses.replace(mesh, fsdp=mesh.fsdp // 2, tensor=mesh.tensor * 2)
    for factor in (2, 4):
        yield dataclasses.replace(mesh, fsdp=mesh.fsdp * factor)


def suggestions(config, shapes: Shapes, model, measure: Callable, limit: float) -> list[tuple[str, int]]:
    """(change, bytes a device by the estimate): the smallest of each kind that fits, or what helps most.

    Args:
        config: of the stage.
        shapes: of its bases.
        model: configuration of the model that is trained.
        measure: (configuration, shapes) -> bytes a device.
        limit: bytes that fit.
    """
    now, found, fitting = measure(config, shapes), [], {}
    for change, make in candidates(config, shapes, model):
        kind = change.split()[0]
        if kind in fitting:
            continue
        try:
            made = make()
            size = now if made is None else measure(*made)
        except (ValueError, ConfigError):
            continue  # the batch or a matrix does not divide so
        if size < 0.98 * now:
            found.append((change, size))
        if size <= limit:
            fitting[kind] = change, size
    return list(fitting.values()) or sorted(found, key=lambda one: one[1])[:3]
