"""Rotary position embedding (Su et al. 2021), in both pairings in use, and its scaling in Llama 3.1.

Legend: B batch, L length, D model width, H heads, C head size.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config import configclass
from gptjax.ranges import Count, Positive


@configclass
class RotaryScaling:
    """How Llama 3.1 stretches the wavelengths to a longer context (`apply_scaling` of llama-models).

    Attributes:
        factor: divides the frequencies of long wavelengths.
        low_frequency_factor: wavelengths above `original_context / low_frequency_factor` are long.
        high_frequency_factor: wavelengths below `original_context / high_frequency_factor` stay as they are.
        original_context: tokens of the context before the scaling.
    """

    factor: Positive = 8.0
    low_frequency_factor: Positive = 1.0
    high_frequency_factor: Positive = 4.0
    original_context: Count = 8192

    def __post_init__(self):
        low, high = self.low_frequency_factor, self.high_frequency_factor
        if low >= high:
            raise ValueError(f"low_frequency_factor = {low} must be below high_frequency_factor = {high}")


def scale_frequencies(frequency: jax.Array, scaling: RotaryScaling) -> jax.Array:
    """`(1 - s) f / factor + s f` with `s = clip((context f / 2 pi - low) / (high - low), 0, 1)`.

    Long wavelengths (s = 0) are stretched by the factor, short ones (s = 1) kept, those between blended.

    Args:
        frequency: float32 `[C / 2]`, radians a token.
        scaling: the factors and the original context.
    """
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_context * frequency / (2 * jnp.pi)
    s = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - s) * frequency / scaling.factor + s * frequency


def rotary_angles(
    positions_BxL: jax.Array, head_size: int, theta: float, scaling: RotaryScaling | None = None
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of `position * theta^(-2i / head_size)` for i in 0 .. head_size / 2.

    Args:
        positions_BxL: int32 `[B, L]`.
        head_size: C, even.
        theta: base of the wavelengths, 10,000 in LLaMA.
        scaling: of the frequencies, or None.

    Returns:
        two float32 arrays `[B, L, C / 2]`. Angles are float32: at position 2,048 a bfloat16 angle is
        wrong by several radians.
    """
    frequency = theta ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    if scaling is not None:
        frequency = scale_frequencies(frequency, scaling)
    angles = positions_BxL.astype(jnp.float32)[..., None] * frequency
    return jnp.cos(angles), jnp.sin(angles)


def rotary_angles_2d(positions_BxLx2: jax.Array, head_size: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """`rotary_angles` of two positions, each for one half of a head's channels (ChatGLM-6B).

    Args:
        positions_BxLx2: int32 `[B, L, 2]`.
        head_size: C, a multiple of 4; the wavelengths are those of heads of C / 2.
        theta: as in `rotary_angles`.

    Returns:
        two float32 arrays `[B, L, C / 2]` for `apply_rotary` with the pairing "quarters".
    """
    cos, sin = rotary_angles(positions_BxLx2, head_size // 2, theta)
    return tuple(x.reshape(*x.shape[:-2], head_size // 2) for x in (cos, sin))


def apply_rotary(
    x_BxHxLxC: jax.Array, cos_BxLxC2: jax.Array, sin_BxLxC2: jax.Array, pairing: str
) -> jax.Array:
    """Rotate each pair of channels by its angle.

    Args:
        x_BxHxLxC: queries or keys.
        cos_BxLxC2, sin_BxLxC2: from `rotary_angles`.
        pairing: "half" pairs channel i with i + C/2 (Hugging Face's LLaMA); "interleaved" pairs 2i with
            2i + 1 (the paper, GGUF). The two differ by a fixed permutation of the channels. "quarters" is
            "half" within each half of the channels (ChatGLM's two positions).

    Returns:
        float32 `[B, H, L, C]`.
    """
    cos, sin = cos_BxLxC2[:, None], sin_BxLxC2[:, None]
    x = x_BxHxLxC.astype(jnp.float32)
    if pairing == "quarters":
        x, cos, sin = (y.reshape(*y.shape[:-1], 2, -1) for y in (x, cos, sin))
    if pairing in ("half", "quarters"):
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x_BxHxLxC.shape)
    a, b = x[..., 0::2], x[..., 1::2]
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


def repair_channels(weight: jax.Array, head_size: int, pairing: str) -> jax.Array:
    """Reorders the channels of every head, so that weights made for the other pairing serve this one.

    Args:
        weight: `[..., H C]`, a kernel or bias of queries or keys; numpy stays numpy.
        head_size: C.
        pairing: the pairing wanted; the weight is in the other.

    Returns:
        the same shape. Channel pairs (i, i + C/2) become (2i, 2i + 1) for "interleaved", and back for "half".
    """
    pairs = (2, head_size // 2) if pairing == "interleaved" else (head_size // 2, 2)
    order = np.arange(head_size).reshape(pairs).T.ravel()
    heads = weight.reshape(*weight.shape[:-1], -1, head_size)
    return heads[..., order].reshape(weight.shape)


def convert_pairing(params: dict, head_size: int, pairing: str) -> dict:
    """A decoder's parameters for the other rotary pairing.

    With the config's `rotary_pairing` replaced alike the logits are the same. Hugging Face's files are
    "half", Meta's and GGUF's "interleaved". Scores are dot products of queries and keys, so reordering the
    channels of both alike changes nothing else.

    Args:
        params: tree of a `LanguageModel` or `ScalarModel` with rotary positions, in the other pairing.
        head_size: C.
        pairing: "half" or "interleaved", the pairing wanted.
    """
    blocks = params["decoder"]["blocks"]
    turned = {
        name: jax.tree.map(lambda x: repair_channels(x, head_size, pairing), blocks["attention"][name])
        for name in ("query", "key")
    }
    blocks = blocks | {"attention": blocks["attention"] | turned}
    return params | {"decoder": params["decoder"] | {"blocks": blocks}}
