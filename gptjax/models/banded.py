"""Locally banded causal attention (Child et al. 2019, section 4.2; Brown et al. 2020, section 2.1).

Legend: B batch, L length, S key slots, H query heads, K key/value heads, C head size, W band, N blocks of W.

Query i sees key j if `0 <= i - j < W`, so W keys with its own. A band counts slots; in a packed row and in a
cache the slots of one document follow each other, so that slots count tokens.
"""

import jax
import jax.numpy as jnp


def band_mask(mask: jax.Array, band: int, first_query: jax.Array | int = 0) -> jax.Array:
    """The mask without the keys that lie `band` or more slots before the query.

    Args:
        mask: bool `[..., L, S]`, True where the query may see the key.
        band: W.
        first_query: slot of the first query; slots of keys count from 0.
    """
    queries, keys = mask.shape[-2:]
    distance = first_query + jnp.arange(queries)[:, None] - jnp.arange(keys)[None, :]
    return mask & (distance < band)


def banded_attention(attend, q_BxHxLxC, k_BxKxLxC, v_BxKxLxC, mask, band):
    """Attention within the band at a cost of `2 W L` scores a head, by blocks of W queries.

    A block of queries reaches back W - 1 slots at most, that is into its own block of keys and the one
    before. Each block becomes a row of the batch, so any dense attention can do the work.

    Args:
        attend: `(q, k, v, mask) -> float32 [B, H, L, C]`, a dense attention.
        q_BxHxLxC, k_BxKxLxC, v_BxKxLxC: queries, keys and values of the same slots.
        mask: bool `[B or 1, 1, L, L]`, causal.
        band: W.

    Returns:
        float32 `[B, H, L, C]`.
    """
    B, H, L, C = q_BxHxLxC.shape
    if L <= 2 * band:  # the blocks would hold as many scores as the square
        return attend(q_BxHxLxC, k_BxKxLxC, v_BxKxLxC, band_mask(mask, band))
    blocks = -(-L // band)
    q = _blocks(q_BxHxLxC, blocks, band)
    k, v = (_with_block_before(_blocks(x, blocks, band)) for x in (k_BxKxLxC, v_BxKxLxC))
    visible = _mask_blocks(mask, blocks, band)
    visible = jnp.broadcast_to(visible, (B, *visible.shape[1:])).reshape(B * blocks, 1, band, 2 * band)
    merged = [x.reshape(B * blocks, *x.shape[2:]) for x in (q, k, v)]
    out = attend(*merged, band_mask(visible, band, first_query=band))
    out_BxHxNxWxC = jnp.moveaxis(out.reshape(B, blocks, H, band, C), 1, 2)
    return out_BxHxNxWxC.reshape(B, H, blocks * band, C)[:, :, :L]


def recent_keys(keys_BxKxSxC, values_BxKxSxC, mask, band, first_query):
    """The part of a cache that L queries within the band can reach: at most `W + L - 1` slots.

    Args:
        keys_BxKxSxC, values_BxKxSxC: the cache, the queries' own slots written.
        mask: bool `[B or 1, 1, L, S]`: which slots each query sees.
        band: W.
        first_query: int32 scalar, slot of the first query.

    Returns:
        (keys, values, mask), each with S lowered to `W + L - 1` if it was more.
    """
    mask = jnp.broadcast_to(mask, (*mask.shape[:2], mask.shape[2], keys_BxKxSxC.shape[2]))
    mask = band_mask(mask, band, first_query)
    size = min(keys_BxKxSxC.shape[2], band + mask.shape[2] - 1)
    # Near the end of the cache dynamic_slice moves the start; the mask is cut alike and stays true.
    start = jnp.maximum(first_query - band + 1, 0)
    k, v = (jax.lax.dynamic_slice_in_dim(x, start, size, axis=2) for x in (keys_BxKxSxC, values_BxKxSxC))
    return k, v, jax.lax.dynamic_slice_in_dim(mask, start, size, axis=3)


def _blocks(x_BxHxLxC, blocks, band):
    """Cuts `[B, H, L, C]` into `[B, N, H, W, C]`, padded with zeros."""
    B, H, L, C = x_BxHxLxC.shape
    padded = jnp.pad(x_BxHxLxC, ((0, 0), (0, 0), (0, blocks * band - L), (0, 0)))
    return jnp.moveaxis(padded.reshape(B, H, blocks, band, C), 2, 1)


def _with_block_before(x_BxNxKxWxC):
    """Puts each block's predecessor before it, zeros before the first: `[B, N, K, 2 W, C]`."""
    earlier = jnp.pad(x_BxNxKxWxC[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
    return jnp.concatenate([earlier, x_BxNxKxWxC], axis=3)


def _mask_blocks(mask, blocks, band):
    """The two diagonals of blocks of a mask: `[B or 1, 1, L, L] -> [B or 1, N, 1, W, 2 W]`."""
    rows, length = mask.shape[0], mask.shape[-1]
    more = blocks * band - length
    padded = jnp.pad(mask[:, 0], ((0, 0), (0, more), (0, more)))
    tiles = padded.reshape(rows, blocks, band, blocks, band)
    at = jnp.arange(blocks)
    own = jnp.moveaxis(tiles[:, at, :, at, :], 0, 1)
    before = jnp.moveaxis(tiles[:, at[1:], :, at[:-1], :], 0, 1)
    before = jnp.pad(before, ((0, 0), (1, 0), (0, 0), (0, 0)))
    return jnp.concatenate([before, own], axis=-1)[:, :, None]
