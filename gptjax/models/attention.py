"""Multi-head attention with grouped key/value heads, explicit masks and a key/value cache.

Legend: B batch, L length, D model width, H query heads, K key/value heads, C head size, S key length.

There is one plain implementation, `reference`. `xla` and `cudnn` are the fused ones of
`jax.nn.dot_product_attention`; the choice is named in the config and nothing falls back silently. On a mesh
that splits the positions of a row the same function is computed around a ring (`models/ring.py`).
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.models.banded import banded_attention, recent_keys
from gptjax.models.layers import Linear
from gptjax.models.matmul import scores_product, values_product
from gptjax.models.ring import CausalSegments, ring_attention
from gptjax.models.rotary import apply_rotary

# Large enough that exp() of it is 0 in float32, small enough that a row without any visible key
# gives a finite uniform distribution (masked out by the loss) where -inf would give NaN.
MASKED_SCORE = -1e30


def causal_mask(length: int, segment_ids_BxL: jax.Array | None = None) -> jax.Array:
    """Which key each query may see: itself and earlier positions of its own segment.

    Args:
        length: L.
        segment_ids_BxL: int32 ids of the documents packed in a row, 0 for padding; None when the whole
            row is one document.

    Returns:
        bool `[1, 1, L, L]`, or `[B, 1, L, L]` with segments; axes are query, key.
    """
    causal_LxL = jnp.tril(jnp.ones((length, length), bool))[None, None]
    if segment_ids_BxL is None:
        return causal_LxL
    return causal_LxL & segment_mask(segment_ids_BxL, segment_ids_BxL)


def segment_mask(queries_BxL: jax.Array, keys_BxS: jax.Array) -> jax.Array:
    """Each query sees the keys of its own segment, before it and after: bool `[B, 1, L, S]`.

    The mask of an encoder, where both are the row's segment ids, and of cross-attention, where the keys' are
    the source's. Padding has id 0, so that no token sees it.
    """
    return queries_BxL[:, None, :, None] == keys_BxS[:, None, None, :]


def prefix_mask(prefix_BxL: jax.Array, segment_ids_BxL: jax.Array | None = None) -> jax.Array:
    """The mask of a prefix language model: all see the prefix, what follows it is causal.

    Query i sees key j of its own segment if j belongs to the prefix, or if i does not and `j <= i`; a prefix
    never sees what follows (Du et al. 2021, arXiv 2103.10360, section 2.1).

    Args:
        prefix_BxL: bool `[B, L]`, whether a token belongs to the prefix of its segment.
        segment_ids_BxL: as in `causal_mask`.

    Returns:
        bool `[B, 1, L, L]`; axes are query, key.
    """
    queries_Bx1xLx1, keys_Bx1x1xL = prefix_BxL[:, None, :, None], prefix_BxL[:, None, None, :]
    visible = keys_Bx1x1xL | (~queries_Bx1xLx1 & causal_mask(prefix_BxL.shape[1]))
    if segment_ids_BxL is None:
        return visible
    return visible & segment_mask(segment_ids_BxL, segment_ids_BxL)


def reference_attention(q_BxHxLxC, k_BxKxSxC, v_BxKxSxC, mask, dtype):
    """`softmax(q k^T / sqrt(C) + mask) v`, the softmax in float32 (Vaswani et al. 2017, section 3.2.1).

    Args:
        q_BxHxLxC: queries; H is a multiple of K and query head h reads key head h // (H / K).
        k_BxKxSxC, v_BxKxSxC: keys and values.
        mask: bool, broadcastable to `[B, 1, L, S]`; True where the query may see the key.
        dtype: precision of the operands of the two products.

    Returns:
        float32 `[B, H, L, C]`.
    """
    B, H, L, C = q_BxHxLxC.shape
    K, S = k_BxKxSxC.shape[1:3]
    # The query heads that share a key head become more rows of one product: no key is copied.
    q_BxKxGLxC = (q_BxHxLxC / math.sqrt(C)).reshape(B, K, H // K * L, C)
    scores = scores_product(q_BxKxGLxC, k_BxKxSxC, dtype).reshape(B, H, L, S)
    weights = jax.nn.softmax(jnp.where(mask, scores, MASKED_SCORE), axis=-1)
    return values_product(weights.reshape(B, K, H // K * L, S), v_BxKxSxC, dtype).reshape(B, H, L, C)


def fused_attention(q_BxHxLxC, k_BxKxSxC, v_BxKxSxC, mask, dtype, implementation):
    """The same function by `jax.nn.dot_product_attention` ("xla" or "cudnn"); shapes as the reference's."""
    q, k, v = (jnp.swapaxes(x, 1, 2).astype(dtype) for x in (q_BxHxLxC, k_BxKxSxC, v_BxKxSxC))
    out_BxLxHxC = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=implementation)
    return jnp.swapaxes(out_BxLxHxC, 1, 2).astype(jnp.float32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of the positions seen so far, one layer.

    Attributes:
        keys: `[B, K, S, C]`, S slots.
        values: `[B, K, S, C]`.
    """

    keys: jax.Array
    values: jax.Array

    @staticmethod
    def empty(batch, kv_heads, slots, head_size, dtype):
        """A cache of zeros; the caller's mask keeps unwritten slots out of sight."""
        return KVCache(*(jnp.zeros((batch, kv_heads, slots, head_size), dtype) for _ in range(2)))

    def write(self, keys_BxKxLxC, values_BxKxLxC, slot) -> "KVCache":
        """The cache with L new positions written from `slot` (int32 scalar) on."""

        def put(old, new):
            new = new.astype(old.dtype)
            if old.shape[0] == 1:  # as the token loop carries the cache of one row (`generation/decode.py`)
                return jax.lax.dynamic_update_slice(old[0], new[0], (0, slot, 0))[None]
            return jax.lax.dynamic_update_slice(old, new, (0, 0, slot, 0))

        return KVCache(put(self.keys, keys_BxKxLxC), put(self.values, values_BxKxLxC))


class Attention(nnx.Module):
    """Attention of one block: projections, optional rotary positions, cache, output projection."""

    def __init__(self, config, rngs: nnx.Rngs):
        c = self.config = config
        linear = partial(Linear, bias=c.attention_bias, dtype=c.compute_dtype, rngs=rngs)
        into, kv_width = partial(linear, c.width, std=c.init_std), c.key_heads * c.head_size
        self.query = into(c.heads * c.head_size, axes=("embed", "heads"))
        self.key = into(kv_width, axes=("embed", "kv_heads"))
        self.value = into(kv_width, axes=("embed", "kv_heads"), gain=c.deep_gain)
        out = {"std": c.residual_init_std, "gain": c.deep_gain}
        self.output = linear(c.heads * c.head_size, c.width, axes=("heads", "embed"), **out)

    def __call__(self, x_BxLxD, mask, rotation=None, cache=None, slot=None, *, memory=None, band=None):
        """Attend from every position of x to the keys `mask` allows.

        Args:
            x_BxLxD: activations, normalised in a pre-norm block.
            mask: bool, broadcastable to `[B, 1, L, S]`, S the number of keys: the cache's slots, the memory's
                length, or L; or `CausalSegments`, where the positions of a row lie on several devices.
            rotation: (cos, sin) of the positions, or None.
            cache: `KVCache` to read and extend, or None.
            slot: int32 scalar, where the L new keys go in the cache.
            memory: `[B, S, D]` that keys and values are made of (cross-attention), or what `remember` made of
                it; None is x itself.
            band: how many keys a query reaches back, its own among them; None is all the mask allows.

        Returns:
            (float32 `[B, L, D]`, the extended cache or None).
        """
        c = self.config
        q = self._split(self.query(x_BxLxD), c.heads)
        if not isinstance(memory, KVCache):
            memory = self.remember(x_BxLxD if memory is None else memory)
        k, v = memory.keys, memory.values
        if rotation is not None:
            q, k = (apply_rotary(x, *rotation, c.rotary_pairing) for x in (q, k))
        if cache is not None:
            cache = cache.write(k, v, slot)
            k, v = cache.keys, cache.values
        if isinstance(mask, CausalSegments):
            out_BxHxLxC = ring_attention(q, k, v, mask, c.compute_dtype, band)
        elif band is None:
            out_BxHxLxC = self._attend(q, k, v, mask)
        elif cache is None:
            out_BxHxLxC = banded_attention(self._attend, q, k, v, mask, band)
        else:
            out_BxHxLxC = self._attend(q, *recent_keys(k, v, mask, band, slot))
        B, L, _ = x_BxLxD.shape
        merged_BxLxHC = jnp.swapaxes(out_BxHxLxC, 1, 2).reshape(B, L, c.heads * c.head_size)
        return self.output(merged_BxLxHC), cache

    def remember(self, x_BxSxD) -> KVCache:
        """Keys and values of x, float32 `[B, K, S, C]` each, before any rotation."""
        heads = self.config.key_heads
        return KVCache(self._split(self.key(x_BxSxD), heads), self._split(self.value(x_BxSxD), heads))

    def _attend(self, q, k, v, mask):
        c = self.config
        if c.attention == "reference":
            return reference_attention(q, k, v, mask, c.compute_dtype)
        return fused_attention(q, k, v, mask, c.compute_dtype, c.attention)

    @staticmethod
    def _split(x_BxLxHC, heads):
        B, L, HC = x_BxLxHC.shape
        return jnp.swapaxes(x_BxLxHC.reshape(B, L, heads, HC // heads), 1, 2)
