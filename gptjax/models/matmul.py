"""Matrix products with a stated input precision and a hand-written backward pass.

Legend: B batch, L length, I inputs, O outputs, H heads, C head size, S cached length.

Inputs are cast to `dtype` and products accumulate and come out in float32. With bfloat16 inputs the
matrix units of TPUs, GPUs and recent CPUs run at full speed while the residual stream, the norms and
the master weights keep float32's 24-bit mantissa. The backward pass is written out because automatic
differentiation would multiply a float32 cotangent with a bfloat16 operand, which no matrix unit does.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax


def _product(a, b, contract, batch, dtype):
    # Left to themselves, NVIDIA GPUs multiply float32 as TF32 and TPUs as bfloat16: three digits.
    precision = lax.Precision.HIGHEST if dtype == "float32" else None
    return lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        (contract, batch),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x_BxLxI: jax.Array, weight_IxO: jax.Array, dtype: str = "float32") -> jax.Array:
    """`x @ weight` with inputs in `dtype` and a float32 result.

    Args:
        x_BxLxI: activations, float32 `[..., I]`; their gradient is float32 too.
        weight_IxO: weights `[I, O]`.
        dtype: precision of the operands, "float32" or "bfloat16".

    Returns:
        float32 `[..., O]`.
    """
    return _product(x_BxLxI, weight_IxO, (((x_BxLxI.ndim - 1,), (0,))), ((), ()), dtype)


def _matmul_forward(x, weight, dtype):
    return matmul(x, weight, dtype), (x.astype(dtype), weight)


def _matmul_backward(dtype, residuals, cotangent):
    x, weight = residuals
    last = cotangent.ndim - 1
    d_x = _product(cotangent, weight, ((last,), (1,)), ((), ()), dtype)
    rows = tuple(range(last))
    # The first operand is transposed on the way in: let it be the narrower one. Not in bfloat16, of which XLA
    # has no product with a transposed result on CPUs.
    if dtype == "float32" and x.shape[-1] > cotangent.shape[-1]:
        d_weight = _product(cotangent, x, (rows, rows), ((), ()), dtype).T
    else:
        d_weight = _product(x, cotangent, (rows, rows), ((), ()), dtype)
    return d_x.astype(jnp.float32), d_weight.astype(weight.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def tied_logits(x_BxLxD: jax.Array, embedding_VxD: jax.Array, dtype: str = "float32") -> jax.Array:
    """`x @ embedding^T`, the logits of a model whose output matrix is its embedding: float32 `[..., V]`.

    As `matmul` with the transposed table, but its gradient is formed in the table's own layout.
    """
    return _product(x_BxLxD, embedding_VxD, ((x_BxLxD.ndim - 1,), (1,)), ((), ()), dtype)


def _tied_forward(x, embedding, dtype):
    return tied_logits(x, embedding, dtype), (x.astype(dtype), embedding)


def _tied_backward(dtype, residuals, cotangent):
    x, embedding = residuals
    last = cotangent.ndim - 1
    d_x = _product(cotangent, embedding, ((last,), (0,)), ((), ()), dtype)
    rows = tuple(range(last))
    # As in `matmul`: the narrower operand is transposed, and CPUs transpose a result in float32 only.
    if dtype == "float32":
        d_embedding = _product(x, cotangent, (rows, rows), ((), ()), dtype).T
    else:
        d_embedding = _product(cotangent, x, (rows, rows), ((), ()), dtype)
    return d_x.astype(jnp.float32), d_embedding.astype(embedding.dtype)


tied_logits.defvjp(_tied_forward, _tied_backward)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TransposedMatrix:
    """A weight whose outputs lie one after the other in memory: `[O, I]`.

    A product with a single row is a sum for each output, and on CPUs reads its weights a fifth faster so.
    With more rows it is no faster.
    """

    weight_OxI: jax.Array

    def after(self, x_BxLxI: jax.Array, dtype: str) -> jax.Array:
        """`x @ weight^T` as `matmul`, for inference: `[..., O]`."""
        return _product(x_BxLxI, self.weight_OxI, ((x_BxLxI.ndim - 1,), (1,)), ((), ()), dtype)


@partial(jax.tree_util.register_dataclass, data_fields=("weight", "a", "b"), meta_fields=("scale",))
@dataclass(frozen=True)
class AdaptedMatrix:
    """A weight with a low-rank change, `W + scale A B`, that is not added up: `x W + scale (x A) B`.

    Neither the sum nor its gradient, each as large as W, is ever in memory.

    Attributes:
        weight: `[..., I, O]`, or what stands for it in a layer.
        a, b: `[..., I, r]` and `[..., r, O]`.
        scale: a constant.
    """

    weight: jax.Array
    a: jax.Array
    b: jax.Array
    scale: float

    def change(self, x_BxLxI: jax.Array, dtype: str) -> jax.Array:
        """`scale (x A) B`, float32 `[..., O]`."""
        return self.scale * matmul(matmul(x_BxLxI, self.a, dtype), self.b, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def scores_product(q_BxHxLxC: jax.Array, k_BxHxSxC: jax.Array, dtype: str = "float32") -> jax.Array:
    """`q @ k^T` for every batch row and head: `[B, H, L, C] x [B, H, S, C] -> float32 [B, H, L, S]`."""
    return _product(q_BxHxLxC, k_BxHxSxC, ((3,), (3,)), ((0, 1), (0, 1)), dtype)


def _scores_forward(q, k, dtype):
    return scores_product(q, k, dtype), (q.astype(dtype), k.astype(dtype))


def _scores_backward(dtype, residuals, cotangent):
    q, k = residuals
    heads = ((0, 1), (0, 1))
    d_q = _product(cotangent, k, ((3,), (2,)), heads, dtype)
    d_k = _product(cotangent, q, ((2,), (2,)), heads, dtype)
    return d_q, d_k


scores_product.defvjp(_scores_forward, _scores_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def values_product(p_BxHxLxS: jax.Array, v_BxHxSxC: jax.Array, dtype: str = "float32") -> jax.Array:
    """`p @ v` for every batch row and head: `[B, H, L, S] x [B, H, S, C] -> float32 [B, H, L, C]`."""
    return _product(p_BxHxLxS, v_BxHxSxC, ((3,), (2,)), ((0, 1), (0, 1)), dtype)


def _values_forward(p, v, dtype):
    return values_product(p, v, dtype), (p.astype(dtype), v.astype(dtype))


def _values_backward(dtype, residuals, cotangent):
    p, v = residuals
    heads = ((0, 1), (0, 1))
    d_p = _product(cotangent, v, ((3,), (3,)), heads, dtype)
    d_v = _product(p, cotangent, ((2,), (2,)), heads, dtype)
    return d_p, d_v


values_product.defvjp(_values_forward, _values_backward)
