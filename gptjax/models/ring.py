"""Ring attention: causal attention over rows whose positions lie on several devices (Liu et al. 2023, arXiv
2310.01889, section 3).

Legend: B batch, L length (on one device inside the ring), H query heads, K key/value heads, G = H / K, C head
size.

Each device of the mesh axis `sequence` keeps its queries. Keys and values go round, one neighbour a turn, and
each device folds what passes into a running softmax in float32. The backward pass goes round once more, with
the gradients of keys and values travelling beside them, so that no device ever holds more than two parts of a
row or writes a mask of the whole row.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gptjax.models.matmul import scores_product, values_product

AXIS = "sequence"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CausalSegments:
    """What `causal_mask` says, not written out.

    Attributes:
        segment_ids: int32 `[B, L]`, alike in all of a row that is one document.
    """

    segment_ids: jax.Array


def ring_attention(q_BxHxLxC, k_BxKxLxC, v_BxKxLxC, mask: CausalSegments, dtype, band=None):
    """`reference_attention` on the ambient mesh, each device attending for its own part of the rows.

    Over the devices j whose keys have passed, with scores s_j and the largest so far m,
    `out = sum_j exp(s_j - m) v_j / sum_j exp(s_j - m)`; both sums are rescaled when m grows.

    Args:
        q_BxHxLxC, k_BxKxLxC, v_BxKxLxC: queries, keys and values; L is a multiple of the axis `sequence`.
        mask: the segments of the rows.
        dtype: precision of the operands of the products.
        band: how many keys a query reaches back, its own among them; None is all.

    Returns:
        float32 `[B, H, L, C]`.
    """
    return _ring(q_BxHxLxC, k_BxKxLxC, v_BxKxLxC, mask.segment_ids, dtype, band)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _ring(q, k, v, ids, dtype, band):
    return _ring_forward(q, k, v, ids, dtype, band)[0]


# By hand: automatic differentiation would keep the keys and the scores of every turn.
def _ring_forward(q, k, v, ids, dtype, band):
    heads, rows = PartitionSpec(None, None, AXIS), PartitionSpec(None, AXIS)
    attend = _per_device(partial(_attend, dtype=dtype, band=band), (*[heads] * 3, rows), (heads, heads))
    out, log_total = attend(q, k, v, ids)
    return out, (q, k, v, ids, out, log_total)


def _ring_backward(dtype, band, residuals, d_out):
    heads, rows = PartitionSpec(None, None, AXIS), PartitionSpec(None, AXIS)
    specs = (*[heads] * 3, rows, *[heads] * 3)
    d_attend = _per_device(partial(_d_attend, dtype=dtype, band=band), specs, (heads,) * 3)
    return *d_attend(*residuals, d_out), None


_ring.defvjp(_ring_forward, _ring_backward)


def _per_device(body, in_specs, out_specs):
    if AXIS in jax.sharding.get_abstract_mesh().manual_axes:  # a stage of a pipeline is a program a device
        return body
    return jax.shard_map(body, in_specs=in_specs, out_specs=out_specs, axis_names={AXIS})


def _attend(q, k, v, ids, *, dtype, band):
    """One device's queries against all keys: (out `[B, H, L, C]`, log of the sum `[B, H, L, 1]`)."""
    queries = _group(q / math.sqrt(q.shape[-1]), k.shape[1])

    def fold(passing, running, turn):
        (k, v, key_ids), (top, total, out) = passing, running
        scores = _scores(queries, k, _visible(ids, key_ids, turn, band), dtype)
        new_top = jnp.maximum(top, scores.max(-1, keepdims=True))
        weights, shrink = jnp.exp(scores - new_top), jnp.exp(top - new_top)
        total = shrink * total + weights.sum(-1, keepdims=True)
        return new_top, total, shrink * out + values_product(weights, v, dtype)

    def one_turn(carry, turn):
        passing, running = carry
        passing = _pass_on(passing)
        return (passing, fold(passing, running, turn)), None

    # Its own keys come first: every query sees itself, so that the largest score is finite from then on.
    passing, zeros = (k, v, ids), jnp.zeros_like(queries)
    running = fold(passing, (jnp.full_like(zeros[..., :1], -jnp.inf), zeros[..., :1], zeros), 0)
    (_, (top, total, out)), _ = jax.lax.scan(one_turn, (passing, running), _later_turns())
    return (out / total).reshape(q.shape), (top + jnp.log(total)).reshape(*q.shape[:3], 1)


def _d_attend(q, k, v, ids, out, log_total, d_out, *, dtype, band):
    """The gradients of q, k and v on one device."""
    scale, heads = 1 / math.sqrt(q.shape[-1]), k.shape[1]
    along = (out * d_out).sum(-1, keepdims=True)  # what the softmax takes from every score's gradient
    queries, log_total, d_out, along = (_group(x, heads) for x in (q * scale, log_total, d_out, along))

    def gradients(k, v, key_ids, turn):
        scores = _scores(queries, k, _visible(ids, key_ids, turn, band), dtype)
        weights = jnp.exp(scores - log_total)
        d_scores = weights * (scores_product(d_out, v, dtype) - along)
        d_k = values_product(jnp.swapaxes(d_scores, 2, 3), queries, dtype)
        d_v = values_product(jnp.swapaxes(weights, 2, 3), d_out, dtype)
        return values_product(d_scores, k, dtype), d_k, d_v

    def one_turn(carry, turn):
        d_q, passing = carry
        k, v, key_ids, d_k, d_v = _pass_on(passing)
        more_q, more_k, more_v = gradients(k, v, key_ids, turn)
        return (d_q + more_q, (k, v, key_ids, d_k + more_k, d_v + more_v)), None

    d_q, d_k, d_v = gradients(k, v, ids, 0)
    (d_q, (*_, d_k, d_v)), _ = jax.lax.scan(one_turn, (d_q, (k, v, ids, d_k, d_v)), _later_turns())
    d_k, d_v = _pass_on((d_k, d_v))  # home
    return (d_q * scale).reshape(q.shape), d_k, d_v


def _group(x_BxHxLxC, kv_heads):
    """The query heads that share a key head as more rows of one product: `[B, K, G L, C]`."""
    B, H, L, C = x_BxHxLxC.shape
    return x_BxHxLxC.reshape(B, kv_heads, H // kv_heads * L, C)


def _scores(queries_BxKxGLxC, k_BxKxLxC, visible_BxLxL, dtype):
    B, K, GL, _ = queries_BxKxGLxC.shape
    L = k_BxKxLxC.shape[2]
    scores = scores_product(queries_BxKxGLxC, k_BxKxLxC, dtype).reshape(B, K, GL // L, L, L)
    return jnp.where(visible_BxLxL[:, None, None], scores, -jnp.inf).reshape(B, K, GL, L)


def _visible(ids_BxL, key_ids_BxL, turn, band):
    """Which of the keys that pass at a turn each of this device's queries may see: bool `[B, L, L]`."""
    L, here, devices = ids_BxL.shape[1], jax.lax.axis_index(AXIS), jax.lax.axis_size(AXIS)
    first_query, first_key = here * L, (here - turn) % devices * L
    distance = first_query - first_key + jnp.arange(L)[:, None] - jnp.arange(L)[None, :]
    within = distance >= 0 if band is None else (distance >= 0) & (distance < band)
    return within & (ids_BxL[:, :, None] == key_ids_BxL[:, None, :])


def _pass_on(x):
    """What the device before this one had."""
    devices = jax.lax.axis_size(AXIS)
    return jax.lax.ppermute(x, AXIS, [(i, (i + 1) % devices) for i in range(devices)])


def _later_turns():
    return jnp.arange(1, jax.lax.axis_size(AXIS))
