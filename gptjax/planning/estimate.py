"""Bytes a device needs, by kind, from shapes and layouts alone: in seconds, and without a compiler.

The compiled program decides; this says what the memory goes to, and what another setting would save.
Legend: N layers, K key/value heads, C head size, B rows, L length, V vocabulary.
"""

import math
from collections import Counter
from dataclasses import replace

import jax

from gptjax.planning.programs import (
    Program,
    Training,
    Work,
    abstract_mesh,
    ambient,
    device_bytes,
    random_key,
)
from gptjax.training.step import TrainState

POLICIES = ("none", "dots", "full")


def estimate(work: Work, plain: Work) -> dict[str, int]:
    """Kind -> bytes on one device.

    `parameters` and `optimiser` are of all that is trained, `models` of what is only read (reference, reward
    model, an adapted base, averaged parameters). `gradients` and `activations` are those of the update that
    needs most, `layer` what one layer is computed again with, `logits` those of a chunk, and `cache` the keys
    and values of a rollout.

    Args:
        work: of a stage.
        plain: the same, with models that compute nothing again.
    """
    kinds: Counter[str] = Counter()
    for tree in work.held.values():
        if isinstance(tree, TrainState):
            kinds["parameters"] += device_bytes(tree.params)
            kinds["optimiser"] += device_bytes(tree.opt_state)
        else:
            kinds["models"] += device_bytes(tree)
    pairs = zip(work.programs, plain.programs, strict=True)
    updates = [_update(work, *pair) for pair in pairs if pair[0].training]
    kinds.update(max(updates, key=lambda update: sum(update.values())))
    # The logits and what they become.
    kinds["logits"] = 8 * work.chunk * work.model.vocab_size // work.mesh.tensor
    kinds["cache"] = cache_bytes(work)
    return {kind: size for kind, size in kinds.items() if size}


def needed(kinds: dict[str, int]) -> int:
    """The sum of an estimate's kinds that are there at once."""
    passing = sum(kinds.get(name, 0) for name in ("gradients", "activations", "layer", "logits"))
    staying = sum(kinds.get(name, 0) for name in ("parameters", "optimiser", "models"))
    return staying + max(passing, kinds.get("cache", 0))


def cache_bytes(work: Work) -> int:
    """Keys and values on one device, `2 N K C` a slot and row in the compute precision."""
    if work.cache is None:
        return 0
    rows, slots = work.cache
    model, split = work.model, math.gcd(work.model.key_heads, work.mesh.tensor)
    size = 2 if model.compute_dtype == "bfloat16" else 4
    numbers = 2 * model.layers * model.key_heads * model.head_size * slots
    return size * numbers * -(-rows // work.mesh.batch_shards) // split


def activation_bytes(work: Work, training: Training) -> int:
    """What the forward pass keeps for the backward pass, on one device: of a micro-batch, or of a pipeline.

    The residuals of `jax.vjp` for the device's own rows: what a third as many rows more add to two, so that
    parameters are not counted. A pipeline keeps those of every tick. Residuals with an axis of heads, of the
    feed-forward width or of the vocabulary are split over `tensor`; where they divide, so are the positions
    of the residual stream, but not of what was gathered for a sublayer's maps.
    """
    split, total = _split_sizes(training.model), 0
    width, tensor = training.model.width, work.mesh.tensor
    for (two, parts, gathered), (three, *_) in zip(
        *(_residuals(work, training, n) for n in (2, 3)), strict=True
    ):
        longer = [i for i, (a, b) in enumerate(zip(two.shape, three.shape, strict=True)) if a != b]
        if longer:  # after the axis of rows come those of a row
            of_row = two.shape[longer[0] + 1 :]
            between = len(of_row) == 2 and of_row[1] == width and of_row[0] % tensor == 0 and not gathered
            parts *= tensor if between or split & set(of_row) else 1
            total += (three.size - two.size) * two.dtype.itemsize // parts
    return total


def _residuals(work: Work, training: Training, factor: int) -> list[tuple]:
    """(shape, devices along `stage` and `sequence` that share it, whether it was gathered) of each.

    The rows are `factor` times those of a device.
    """

    def local(leaf):
        share = max(1, leaf.shape[0] * training.local_rows // training.rows)
        return jax.ShapeDtypeStruct((factor * share, *leaf.shape[1:]), leaf.dtype)

    def residuals(params, batch, key, *extra):
        totals = training.count(batch)
        _, backward = jax.vjp(lambda p: training.loss(p, batch, totals, key, *extra)[0], params)
        return jax.tree.leaves(backward)

    mesh = abstract_mesh(replace(work.mesh, data=1, fsdp=1))
    batch, extra = jax.tree.map(local, training.batch), jax.tree.map(_anywhere, training.extra)
    with ambient(mesh):
        traced = jax.make_jaxpr(residuals)(training.params, batch, random_key(), *extra).jaxpr
    # What leaves the pipeline says how it lies; of all else the positions are split.
    parts = {
        id(left): math.prod(mesh.shape[axis] for axis in jax.tree.leaves(tuple(spec)))
        for equation in traced.eqns
        if equation.primitive.name == "shard_map"
        for left, spec in zip(equation.outvars, equation.params["out_specs"], strict=True)
    }
    return [
        (one.aval, parts.get(id(one), work.mesh.sequence), _gathered(traced, one)) for one in traced.outvars
    ]


def _gathered(traced, value) -> bool:
    """Whether a value of a traced program comes of `into_sublayer`, perhaps in another precision."""
    made = next((equation for equation in traced.eqns if value in equation.outvars), None)
    if made is None:
        return False
    if made.primitive.name == "sharding_constraint":
        return "tensor" not in jax.tree.leaves(tuple(made.params["sharding"].spec))
    if made.primitive.name == "convert_element_type":
        return _gathered(traced, made.invars[0])
    if "jaxpr" not in made.params:  # of a loop, a pipeline or a nested program
        return False
    inner = getattr(made.params["jaxpr"], "jaxpr", made.params["jaxpr"])
    return _gathered(inner, inner.outvars[made.outvars.index(value)])


def _anywhere(leaf) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _update(work: Work, program: Program, plain: Program) -> dict[str, int]:
    """What an update needs besides what is held."""
    model, kept = program.training.model, activation_bytes(work, program.training)
    if model.remat == "none":
        layer = 0
    else:  # one of a stage's layers at one tick
        layer = activation_bytes(work, plain.training) * work.mesh.stage // (model.layers * work.ticks)
    return {"gradients": device_bytes(program.arguments[0].params), "activations": kept, "layer": layer}


def _split_sizes(model) -> set[int]:
    """Sizes of the axes of activations that `tensor` splits; a size that the width has too is none."""
    return {model.heads, model.key_heads, model.inner_width, model.vocab_size} - {model.width}
