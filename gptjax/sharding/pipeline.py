"""A pipeline: the layers lie on the devices of the mesh axis `stage`, and micro-batches flow through them.

Legend: M micro-batches, S stages, N layers, B rows of a micro-batch, L length, D model width.

The schedule is GPipe's (Huang et al. 2018, arXiv 1811.06965, section 2.3): at tick t stage s works on
micro-batch t - s and hands it on; the backward pass runs the same ticks from the last to the first.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gptjax.sharding.rules import constrain

AXIS = "stage"
# How what lies beside the micro-batches is split: `[M, B, L, ...]` by its positions, or not at all.
BY_POSITION, WHOLE = PartitionSpec(None, None, "sequence"), PartitionSpec()


def bubble_fraction(stages: int, microbatches: int) -> float:
    """Share of the time that a stage waits, `(S - 1) / (M + S - 1)` (section 2.3)."""
    return (stages - 1) / (microbatches + stages - 1)


def pipeline(run_layers, layers, x_MxBxLxD, beside, beside_specs=WHOLE):
    """x through all layers, each stage of the ambient mesh running its own.

    Args:
        run_layers: `(a stage's layers, x [B, L, D], what lies beside one micro-batch, stage) -> [B, L, D]`,
            the program of one device along the axes `stage` and `sequence`: L is its part of the positions.
        layers: tree of arrays `[N, ...]`, N a multiple of the stages; stage s has layers s N / S and on.
        x_MxBxLxD: what enters the first layer.
        beside: tree of arrays `[M, ...]` that every layer reads, such as masks.
        beside_specs: `BY_POSITION` or `WHOLE` for parts of that tree.

    Returns:
        what leaves the last layer, `[M, B, L, D]`, on every stage.
    """

    def one_stage(layers, x, beside):
        stage, stages, count = jax.lax.axis_index(AXIS), jax.lax.axis_size(AXIS), x.shape[0]
        # Devices along `sequence` share the layers: their gradients are added once, at the end.
        layers = jax.tree.map(lambda a: jax.lax.pcast(a, ("sequence",), to="varying"), layers)

        def tick(arriving, time):
            number = jnp.clip(time - stage, 0, count - 1)
            entering = jnp.where(stage == 0, x[number], arriving)
            leaving = run_layers(layers, entering, jax.tree.map(lambda a: a[number], beside), stage)
            return jax.lax.ppermute(leaving, AXIS, [(s, s + 1) for s in range(stages - 1)]), leaving

        # Before its first micro-batch and after its last a stage works on what no one reads.
        nothing = jax.lax.pcast(jnp.zeros_like(x[0]), (AXIS,), to="varying")
        _, left = jax.lax.scan(tick, nothing, jnp.arange(count + stages - 1))
        return jax.lax.psum(jnp.where(stage == stages - 1, left[stages - 1 :], 0), AXIS)

    per_device = jax.shard_map(
        one_stage,
        in_specs=(PartitionSpec(AXIS), BY_POSITION, beside_specs),
        out_specs=BY_POSITION,
        axis_names={AXIS, "sequence"},
    )
    return per_device(layers, constrain(x_MxBxLxD, (None, "batch", "length", None)), beside)


def to_microbatches(x: jax.Array, microbatches: int) -> jax.Array:
    """Rows `[M B, ...]` as `[M, B, ...]`; the single row `[1, ...]` of what is alike in all, M times.

    Micro-batch i takes rows i, i + M, i + 2 M, ...: every device keeps its own rows.
    """
    if x.shape[0] == 1:
        return jnp.broadcast_to(x, (microbatches, *x.shape))
    return jnp.swapaxes(x.reshape(-1, microbatches, *x.shape[1:]), 0, 1)


def from_microbatches(x: jax.Array) -> jax.Array:
    """The rows in their first order: `[M, B, ...]` as `[M B, ...]`."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])
