"""The programs that a stage compiles, without data or numbers: functions and the shapes they are called with.

Legend: B batch, L length, K completions of a prompt, P prompt slots, T response slots.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh

from gptjax.models.lora import attach
from gptjax.sharding.mesh import MESH_AXES, MeshConfig, batch_sharding
from gptjax.sharding.pipeline import bubble_fraction
from gptjax.sharding.rules import parameter_shardings
from gptjax.stages.adapters import make_adapted_step
from gptjax.stages.sharded import order_microbatches, state_shardings
from gptjax.training.step import TrainState, make_train_step


@dataclass(frozen=True)
class Training:
    """What a train step differentiates.

    Attributes:
        model: configuration of the model whose layers make the activations.
        loss: see `accumulated_gradient`.
        count: batch -> totals.
        params: what is trained, without numbers.
        batch: of an update, without numbers.
        extra: further arguments of the loss.
        rows: of an update.
        local_rows: that are differentiated at once on one device: of a micro-batch, or of all in a pipeline.
    """

    model: Any
    loss: Callable
    count: Callable
    params: Any
    batch: Any
    extra: tuple
    rows: int
    local_rows: int


@dataclass(frozen=True)
class Program:
    """One program of a stage.

    Attributes:
        name: such as "update".
        function: pure.
        arguments: trees of `jax.ShapeDtypeStruct`, laid out on the mesh.
        donated: which of them it may overwrite.
        calls: how often a step of the stage runs it.
        resident: which of the arguments are part of what the stage holds.
        trips: turns of a loop that ends when all replies have.
        training: of a train step; None for what only reads.
    """

    name: str
    function: Callable
    arguments: tuple
    donated: tuple[int, ...] = ()
    calls: int = 1
    resident: tuple[int, ...] = (0,)
    trips: int = 1
    training: Training | None = None


@dataclass(frozen=True)
class Work:
    """What a stage does.

    Attributes:
        name: of the stage.
        mesh: of the stage.
        model: configuration of the model that is trained.
        held: name -> trees that stay in memory during the whole stage, laid out on the mesh.
        programs: see `Program`.
        parameters: how many there are, by model.
        tokens: positions that a step trains on, or draws.
        steps: None where the data decides.
        total: tokens of the whole run; None where the data decides.
        assumed: sentences on what the configuration does not say.
        cache: (rows, slots) of the key/value cache; None without one.
        chunk: tokens whose logits the loss holds at once on a device, where that is set.
        flowing: micro-batches that follow each other through a pipeline.
    """

    name: str
    mesh: MeshConfig
    model: Any
    held: dict[str, Any]
    programs: list[Program]
    parameters: dict[str, int]
    tokens: int
    steps: int | None
    total: int | None
    assumed: list[str] = field(default_factory=list)
    cache: tuple[int, int] | None = None
    chunk: int = 0
    flowing: int = 1

    @property
    def ticks(self) -> int:
        """Turns in which a pipeline passes its micro-batches through, `M + S - 1`; 1 without one."""
        return self.flowing + self.mesh.stage - 1

    @property
    def bubble(self) -> float:
        """Share of them that a stage waits."""
        return bubble_fraction(self.mesh.stage, self.flowing)


def abstract_mesh(config: MeshConfig) -> AbstractMesh:
    """The mesh of a configuration without devices."""
    shape = tuple(getattr(config, axis) for axis in MESH_AXES)
    return AbstractMesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))


def ambient(mesh: Mesh | AbstractMesh) -> AbstractContextManager:
    """Makes the mesh that of what is traced, with devices or without."""
    return jax.sharding.use_abstract_mesh(mesh) if isinstance(mesh, AbstractMesh) else jax.set_mesh(mesh)


def laid_out(tree, shardings):
    """The shapes with these shardings."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def parameters(definition, mesh):
    """A model's parameters on the mesh."""
    return laid_out(definition.abstract, parameter_shardings(mesh, definition.abstract, definition.axes))


def train_state(definition, optimizer, mesh) -> TrainState:
    """A train state on the mesh."""
    state = jax.eval_shape(lambda p: TrainState.create(p, optimizer), definition.abstract)
    return laid_out(state, state_shardings(definition, optimizer, mesh))


def by_rows(tree, mesh):
    """A batch as `place` lays it out."""
    return laid_out(tree, jax.tree.map(lambda x: batch_sharding(mesh, x.ndim), tree))


def rows(mesh, **declared: tuple) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of arrays, name -> (shape, dtype)."""
    return by_rows({n: jax.ShapeDtypeStruct(*shape_and_kind) for n, shape_and_kind in declared.items()}, mesh)


def text_batch(mesh, count: int, length: int, names: tuple[str, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of a language model."""
    kinds = {name: jnp.float32 if name == "loss_mask" else jnp.int32 for name in names}
    return rows(mesh, **{name: ((count, length), kind) for name, kind in kinds.items()})


def random_key():
    """A PRNG key without its number."""
    return jax.eval_shape(lambda: jax.random.key(0))


def update_program(
    name: str,
    definition,
    optimizer,
    loss: Callable,
    count: Callable,
    batch,
    mesh,
    *,
    config,
    rows: int,
    model=None,
    adapted: tuple | None = None,
    calls: int = 1,
) -> Program:
    """A train step as its stage compiles it.

    Args:
        definition: of what is trained.
        optimizer, loss, count, batch: see `make_train_step`.
        config: of the stage, for `mesh` and `accumulate`.
        rows: B.
        model: configuration of the whole model; None is the definition's.
        adapted: (`LoraConfig`, the laid-out base) where adapters are trained.
        calls: see `Program`.
    """
    extra, of_params = (), loss
    make_step = make_train_step
    if adapted is not None:
        lora, base = adapted
        extra, make_step = (base,), partial(_adapted_step, lora=lora)

        def of_params(adapters, batch, total, key, base):
            return loss(attach(base, adapters, lora), batch, total, key)

    in_turn, _ = order_microbatches(config.mesh, config.accumulate)
    local = max(1, rows // (config.mesh.batch_shards * in_turn))
    model = definition.config if model is None else model
    return Program(
        name=name,
        function=make_step(loss, count, optimizer, accumulate=in_turn),
        arguments=(train_state(definition, optimizer, mesh), batch, random_key(), *extra),
        donated=(0,),
        calls=calls,
        resident=(0, 3) if extra else (0,),
        training=Training(model, of_params, count, definition.abstract, batch, extra, rows, local),
    )


def _adapted_step(loss, count, optimizer, *, lora, accumulate):
    return make_adapted_step(loss, count, lora, optimizer, accumulate=accumulate)


def lower(program: Program, mesh, platforms: tuple[str, ...] | None = None) -> jax.stages.Lowered:
    """The program lowered for the mesh; on a mesh without devices, for the named platforms."""
    with ambient(mesh):
        traced = jax.jit(program.function, donate_argnums=program.donated).trace(*program.arguments)
        return traced.lower(lowering_platforms=platforms)


def device_bytes(tree) -> int:
    """Bytes that a laid-out tree takes on one device."""
    return sum(map(_leaf_bytes, jax.tree.leaves(tree)))


def _leaf_bytes(leaf) -> int:
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return leaf.dtype.itemsize * math.prod(shape)
