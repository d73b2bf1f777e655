"""Sinusoidal positions (Vaswani et al. 2017, arXiv 1706.03762, section 3.5).

Legend: B batch, L length, D model width.
"""

import jax
import jax.numpy as jnp


def sinusoids(positions_BxL: jax.Array, width: int) -> jax.Array:
    """Channel 2i is `sin(position / 10000^(2i / D))`, channel 2i + 1 its cosine.

    tensor2tensor puts all sines before all cosines and divides by `D / 2 - 1` in the exponent; here are the
    paper's.

    Args:
        positions_BxL: int32 `[B, L]`.
        width: D, even.

    Returns:
        float32 `[B, L, D]`.
    """
    frequency = 10_000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = positions_BxL.astype(jnp.float32)[..., None] * frequency
    pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return pairs.reshape(*positions_BxL.shape, width)
