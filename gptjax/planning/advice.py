"""What to change when a run does not fit, with what each change would leave by the estimate."""

import dataclasses
from collections.abc import Callable, Iterator

from gptjax.config import ConfigError
from gptjax.planning.shapes import Shapes
from gptjax.sharding.mesh import MESH_AXES, MeshConfig


def with_model(config, shapes: Shapes, **changes) -> tuple[object, Shapes] | None:
    """The stage with another setting of its model; None where a base brings the model."""
    if not hasattr(config, "model"):
        return None
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes)), shapes


def candidates(config, shapes: Shapes, model) -> Iterator[tuple[str, str, Callable]]:
    """(kind, what to write on the command line, what makes the stage's configuration and shapes)."""
    order = ["none", "dots", "full"]
    for policy in order[order.index(model.remat) + 1 :]:
        yield "remat", f"--model.remat {policy}", lambda p=policy: with_model(config, shapes, remat=p)
    if model.compute_dtype == "float32":
        wanted = {"compute_dtype": "bfloat16"}
        yield "precision", "--model.compute-dtype bfloat16", lambda: with_model(config, shapes, **wanted)
    for factor in (2, 4, 8, 16):
        yield with_keys(config, shapes, "accumulate", accumulate=config.accumulate * factor)
    if getattr(config, "loss_chunk", 0) > 1024:
        yield with_keys(config, shapes, "chunk", loss_chunk=1024)
    for axis, mesh in other_meshes(config.mesh):
        # With four micro-batches a stage the bubble hardly matters (Huang et al. 2018, section 2.3).
        filled = {"accumulate": max(config.accumulate, 4 * mesh.stage)} if axis == "stage" else {}
        yield with_keys(config, shapes, axis, mesh=mesh, **filled)


def with_keys(config, shapes: Shapes, kind: str, **changes) -> tuple[str, str, Callable]:
    """A candidate that sets keys of the stage itself."""
    words = {key: new for key, new in changes.items() if key != "mesh"}
    if mesh := changes.get("mesh"):
        sizes = {axis: getattr(mesh, axis) for axis in MESH_AXES}
        words |= {f"mesh.{a}": n for a, n in sizes.items() if n != getattr(config.mesh, a)}
    text = " ".join(f"--{key.replace('_', '-')} {word}" for key, word in words.items())
    return kind, text, lambda: (dataclasses.replace(config, **changes), shapes)


def other_meshes(mesh: MeshConfig) -> Iterator[tuple[str, MeshConfig]]:
    """(axis, mesh that splits more along it): with as many devices, then with twice and four times as many.

    What a stage or its batch cannot be split by is offered too: its configuration refuses it.
    """
    if mesh.data > 1:
        yield "fsdp", dataclasses.replace(mesh, data=1, fsdp=mesh.fsdp * mesh.data)
    for axis in ("fsdp", "tensor", "sequence", "stage"):
        size = getattr(mesh, axis)
        for factor in (2, 4):
            giver = next((a for a in ("data", "fsdp") if a != axis and getattr(mesh, a) % factor == 0), None)
            if axis != "fsdp" and giver and (axis != "tensor" or size * factor <= 8):
                fewer = {giver: getattr(mesh, giver) // factor}
                yield axis, dataclasses.replace(mesh, **fewer, **{axis: size * factor})
        for factor in (2, 4) if axis != "tensor" else ():
            yield axis, dataclasses.replace(mesh, **{axis: size * factor})


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
    for kind, change, make in candidates(config, shapes, model):
        if kind in fitting:
            continue
        try:
            made = make()
            size = now if made is None else measure(*made)
        except (ValueError, ConfigError):
            continue  # the batch, the rows, the layers or a matrix do not divide so
        if size < 0.98 * now:
            found.append((change, size))
        if size <= limit:
            fitting[kind] = change, size
    return list(fitting.values()) or sorted(found, key=lambda one: one[1])[:3]
