"""Put a stage's state and step on the mesh: born sharded, donated, one jit."""

import jax
import jax.numpy as jnp

from gptjax.models.functional import ModelDefinition
from gptjax.models.transformer import DecoderConfig
from gptjax.sharding.mesh import MeshConfig, replicated
from gptjax.sharding.rules import parameter_shardings
from gptjax.training.step import TrainState


def check_decoder(model: DecoderConfig, length: int, mesh: MeshConfig) -> None:
    """Refuse a mesh that cannot split the rows or the layers of a pretraining.

    Raises:
        ValueError: naming the numbers.
    """
    if length % (parts := mesh.sequence * mesh.stage):
        raise ValueError(
            f"length = {length} does not divide over mesh.sequence x mesh.stage = {mesh.sequence} x "
            f"{mesh.stage}: use a multiple of {parts}"
        )
    alike = mesh.stage * (1 if model.attention_band is None else 2)
    if mesh.stage > 1 and model.layers % alike:
        bands = "" if model.attention_band is None else " in pairs of a dense and a banded layer"
        raise ValueError(
            f"model.layers = {model.layers} does not divide over mesh.stage = {mesh.stage}{bands}: use a "
            f"multiple of {alike}"
        )
    if mesh.sequence > 1 and model.attention != "reference":
        raise ValueError(
            f"model.attention = {model.attention!r} attends within one device, but mesh.sequence = "
            f"{mesh.sequence} splits the rows: set model.attention to 'reference', which goes round the ring"
        )


def order_microbatches(mesh: MeshConfig, accumulate: int) -> tuple[int, int]:
    """(micro-batches whose gradients are added one after the other, micro-batches that fill a pipeline)."""
    return (1, accumulate) if mesh.stage > 1 else (accumulate, 1)


def create_state(definition: ModelDefinition, optimizer, mesh, key=None, params=None) -> TrainState:
    """A train state laid out on the mesh, from fresh or given parameters.

    Args:
        definition: the model.
        optimizer: optax transformation.
        mesh: from `make_mesh`.
        key: initialises fresh parameters, directly in their shards.
        params: parameters to start from instead; they are copied, since a train step gives its input away.
    """
    shardings = parameter_shardings(mesh, definition.abstract, definition.axes)
    if params is None:
        params = jax.jit(definition.initialise, out_shardings=shardings)(key)
    else:
        params = jax.tree.map(lambda x, s: jax.device_put(x.copy(), s), params, shardings)
    return jax.jit(
        lambda p: TrainState.create(p, optimizer),
        out_shardings=state_shardings(definition, optimizer, mesh),
    )(params)


def first_step(mesh) -> jax.Array:
    """The step 0 of a state that is more than a train state: int32 scalar, on every device of the mesh."""
    return jax.device_put(jnp.zeros((), jnp.int32), replicated(mesh))


def state_shardings(definition: ModelDefinition, optimizer, mesh) -> TrainState:
    """The sharding of every leaf of a train state.

    Moments lie as their parameters do: a leaf of the optimiser's state that stands at the end of a
    parameter's path and has its shape takes its sharding; counters are replicated.
    """
    shardings = parameter_shardings(mesh, definition.abstract, definition.axes)
    abstract = jax.eval_shape(lambda p: TrainState.create(p, optimizer), definition.abstract)
    known = {
        tuple(_name(k) for k in path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(definition.abstract), jax.tree.leaves(shardings), strict=True
        )
    }

    def one(path, leaf):
        names = tuple(_name(k) for k in path)
        for start in range(len(names)):
            shape, sharding = known.get(names[start:], (None, None))
            if shape == leaf.shape:
                return sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, abstract)


def compile_step(step, mesh, *frozen):
    """The jitted step; its state is donated, and the mesh is ambient while it is traced.

    `frozen` are further arguments of the step that stay the same, such as a base model's parameters: as
    arguments they are read where they lie, where a program that closes over them would hold a copy.
    """
    jitted = jax.jit(step, donate_argnums=0)

    def run(state, batch, key):
        with jax.set_mesh(mesh):
            return jitted(state, batch, key, *frozen)

    return run


def bounded(metrics: list) -> None:
    """Waits for the update before the last one; give it the metrics of all updates after each.

    Of updates without a limit a CPU's devices take so many ahead that those which wait in a reduction hold
    every thread, and those they wait for get none.
    """
    jax.block_until_ready(metrics[:-1][-1:])


def _name(key) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))
