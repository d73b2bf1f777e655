"""Weight-only quantisation to 8 or 4 bits: linear maps are kept as small integers and a scale.

`scale = max|w| / levels`, `q = round(w / scale)`, `levels = 2^(bits - 1) - 1`, so that
`|w - scale q| <= scale / 2` (Zeng et al. 2022, GLM-130B, arXiv 2210.02414, section 3.2). The maximum goes
over the weights of one output, a row of the paper's `[O, I]` and a column of our `[I, O]`, or over each group
of `group_size` inputs of it.

What is quantised: the kernel of every linear map, see `linear_maps`. What is not, as in the paper: embeddings
and output matrices, whose rows are single tokens, norms and biases, which are few, and the head of a scalar
model.

A quantised map is a leaf of the parameter tree; `Linear` makes it floating point when its input has come.
Inside jit one map at a time exists in full:

    definition.apply(quantize(params, QuantizationConfig(bits=4)), tokens)

Legend: N layers, I inputs, O outputs, G groups of inputs.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from gptjax.config import ConfigError, configclass
from gptjax.models.functional import Params, leaf_at, linear_maps
from gptjax.ranges import Count


@configclass
class QuantizationConfig:
    """How linear maps are quantised.

    Attributes:
        bits: 8, or 4, of which two share a byte.
        group_size: inputs that share a scale; they divide the inputs of every map. None: all of them, one
            scale for each output, as GLM-130B.
        scale_dtype: precision of the scales. "bfloat16" halves them, which is worth it with small groups.
    """

    bits: Literal[8, 4] = 8
    group_size: Count | None = None
    scale_dtype: Literal["float32", "bfloat16"] = "float32"


@partial(jax.tree_util.register_dataclass, data_fields=("values", "scales"), meta_fields=("bits", "inputs"))
@dataclass(frozen=True)
class QuantizedMatrix:
    """One linear map, or a stack of them.

    Attributes:
        values: int8 `[..., I, O]`; or, with 4 bits, uint8 `[..., ceil(I / 2), O]`, input 2 i in the lower
            half of a byte and 2 i + 1 in the upper, each plus 8.
        scales: `[..., G, O]`.
        bits: 8 or 4.
        inputs: I.
    """

    values: jax.Array
    scales: jax.Array
    bits: int
    inputs: int

    def __getitem__(self, index) -> jax.Array:
        """`matrix[...]`, as layers read their weights: float32 `[..., I, O]`."""
        if index is not Ellipsis:
            raise TypeError(
                f"a quantised matrix is read whole, as matrix[...], but [{index!r}] was asked for"
            )
        return dequantize_matrix(self)


@partial(jax.jit, static_argnames="config")
def quantize_matrix(weight: jax.Array, config: QuantizationConfig) -> QuantizedMatrix:
    """One map `[..., I, O]` in integers. A column that is not finite comes back as NaN, not as numbers.

    Raises:
        ConfigError: the groups do not divide the inputs.
    """
    *stack, inputs, outputs = weight.shape
    group = config.group_size or inputs
    if inputs % group:
        raise ConfigError(
            f"group_size = {group} does not divide the {inputs} inputs of a linear map: use a divisor, or "
            "none for one scale per output"
        )
    levels = 2 ** (config.bits - 1) - 1
    grouped = weight.astype(jnp.float32).reshape(*stack, inputs // group, group, outputs)
    scales = _rounded_up(jnp.abs(grouped).max(-2) / levels, config.scale_dtype)
    divisor = jnp.where(scales > 0, scales, 1).astype(jnp.float32)[..., None, :]
    values = jnp.round(grouped / divisor).astype(jnp.int8).reshape(weight.shape)
    if config.bits == 4:
        values = _pack(values)
    return QuantizedMatrix(values, scales, config.bits, inputs)


def dequantize_matrix(matrix: QuantizedMatrix) -> jax.Array:
    """The map in floating point, float32 `[..., I, O]`."""
    values = matrix.values if matrix.bits == 8 else _unpack(matrix.values, matrix.inputs)
    *stack, inputs, outputs = values.shape
    groups = matrix.scales.shape[-2]
    grouped = values.astype(jnp.float32).reshape(*stack, groups, inputs // groups, outputs)
    return (grouped * matrix.scales.astype(jnp.float32)[..., None, :]).reshape(values.shape)


def dequantize_after(x: jax.Array, matrix: QuantizedMatrix) -> jax.Array:
    """The map in floating point, float32 `[I, O]`, not made before its input x is there.

    Left to itself the compiler would make the maps of all layers at once, in decoding even before the loop
    over tokens, and the memory that quantisation saves would be gone.
    """
    # No number is above infinity, but the compiler waits to see it. On the CPU it takes no notice of an
    # optimization_barrier.
    never = x[(0,) * x.ndim] > jnp.inf
    later = matrix.values + never.astype(matrix.values.dtype)
    return dequantize_matrix(replace(matrix, values=later))


def quantize(params: Params, config: QuantizationConfig) -> Params:
    """The parameter tree with every linear map as a `QuantizedMatrix`; the other leaves stay as they are.

    Args:
        params: parameters, or abstract ones under `jax.eval_shape`.
        config: see `QuantizationConfig`.

    Raises:
        ConfigError: the groups do not divide a map's inputs.
    """
    return _map_linear(params, lambda kernel: quantize_matrix(kernel, config=config))


def dequantize(params: Params) -> Params:
    """The parameter tree with float32 linear maps again, each within half a scale of the original."""
    return _map_linear(params, dequantize_matrix)


def quantized_axes(axes: Params, config: QuantizationConfig, abstract: Params) -> Params:
    """Logical axis names of the quantised tree; the groups' axis is never split.

    Args:
        axes: of the model.
        config: the one it is quantised with.
        abstract: the model's abstract parameters.
    """
    small = jax.eval_shape(partial(quantize, config=config), abstract)

    def one(names, matrix):
        if not isinstance(matrix, QuantizedMatrix):
            return names
        *stack, _, outputs = names
        return QuantizedMatrix(names, (*stack, None, outputs), matrix.bits, matrix.inputs)

    return jax.tree.map(one, axes, small, is_leaf=lambda x: isinstance(x, tuple))


# What `--weights` and the tables call them.
WEIGHT_FORMATS = {"int8": QuantizationConfig(bits=8), "int4": QuantizationConfig(bits=4)}


def quantized_bytes(abstract: Params, config: QuantizationConfig) -> int:
    """Bytes of `quantize(params, config)`, from the shapes alone; the groups must divide the inputs."""
    total = tree_bytes(abstract)
    for path in linear_maps(abstract):
        kernel = leaf_at(abstract, path)
        inputs, columns = kernel.shape[-2], kernel.size // kernel.shape[-2]
        values = inputs if config.bits == 8 else -(-inputs // 2)
        scales = inputs // (config.group_size or inputs) * jnp.dtype(config.scale_dtype).itemsize
        total += columns * (values + scales) - tree_bytes(kernel)
    return total


def tree_bytes(params) -> int:
    """Bytes of all arrays of a tree, also of abstract ones."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def _map_linear(params: Params, function) -> Params:
    changed = jax.tree.map(lambda leaf: leaf, params, is_leaf=_is_matrix)  # new dicts, the same leaves
    for *parents, name in linear_maps(params):
        node = changed
        for parent in parents:
            node = node[parent]
        node[name] = function(node[name])
    return changed


def _is_matrix(leaf) -> bool:
    return isinstance(leaf, QuantizedMatrix)


def _rounded_up(scales: jax.Array, dtype: str) -> jax.Array:
    """Scales in `dtype`, never below their value: the largest weight must not fall outside the levels."""
    rounded = scales.astype(dtype)
    above = jnp.nextafter(rounded, jnp.full_like(rounded, jnp.inf))
    # What is below by float32's rounding alone stays, so that quantising twice changes nothing.
    return jnp.where(rounded.astype(jnp.float32) < scales * (1 - 2**-22), above, rounded)


def _pack(values: jax.Array) -> jax.Array:
    """int8 `[..., I, O]` within -7 .. 7 as uint8 `[..., ceil(I / 2), O]`; an odd input has a 0 beside it."""
    *stack, inputs, outputs = values.shape
    padding = [(0, 0)] * len(stack) + [(0, inputs % 2), (0, 0)]
    shifted = (jnp.pad(values, padding) + 8).astype(jnp.uint8)
    pairs = shifted.reshape(*stack, -1, 2, outputs)
    return pairs[..., 0, :] | (pairs[..., 1, :] << 4)


def _unpack(packed: jax.Array, inputs: int) -> jax.Array:
    """The inverse of `_pack`."""
    *stack, half, outputs = packed.shape
    pairs = jnp.stack([packed & 15, packed >> 4], axis=-2)
    return (pairs.reshape(*stack, 2 * half, outputs).astype(jnp.int8) - 8)[..., :inputs, :]
