"""Rotary position embedding (Su et al. 2021), in both pairings in use.

Legend: B batch, L length, H heads, C head size.
"""

import jax
import jax.numpy as jnp


def rotary_angles(positions_BxL: jax.Array, head_size: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of `position * theta^(-2i / head_size)` for i in 0 .. head_size / 2.

    Args:
        positions_BxL: int32 `[B, L]`.
        head_size: C, even.
        theta: base of the wavelengths, 10,000 in LLaMA.

    Returns:
        two float32 arrays `[B, L, C / 2]`. Angles are float32: at position 2,048 a bfloat16 angle is
        wrong by several radians.
    """
    frequency = theta ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    angles = positions_BxL.astype(jnp.float32)[..., None] * frequency
    return jnp.cos(angles), jnp.sin(angles)


def apply_rotary(
    x_BxHxLxC: jax.Array, cos_BxLxC2: jax.Array, sin_BxLxC2: jax.Array, pairing: str
) -> jax.Array:
    """Rotate each pair of channels by its angle.

    Args:
        x_BxHxLxC: queries or keys.
        cos_BxLxC2, sin_BxLxC2: from `rotary_angles`.
        pairing: "half" pairs channel i with i + C/2 (Hugging Face's LLaMA); "interleaved" pairs 2i with
            2i + 1 (the paper, GGUF). The two differ by a fixed permutation of the channels.

    Returns:
        float32 `[B, H, L, C]`.
    """
    cos, sin = cos_BxLxC2[:, None], sin_BxLxC2[:, None]
    x = x_BxHxLxC.astype(jnp.float32)
    if pairing == "half":
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    a, b = x[..., 0::2], x[..., 1::2]
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)
