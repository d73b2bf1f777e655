"""Masked sums, means, variances and whitening, with denominators that are safe when nothing is left.

A mask is boolean or holds non-negative weights, and broadcasts to the shape of what it masks. An element
whose mask is 0 takes no part: a NaN or an infinity there reaches neither the value nor the gradient.
Arithmetic is float32 (float64 if the array is float64): a bfloat16 sum of more than 256 ones is wrong.
"""

import jax
import jax.numpy as jnp


def as_float(x: jax.Array) -> jax.Array:
    """Casts to float32, or leaves float64 as it is.

    Example:
        >>> import jax.numpy as jnp
        >>> as_float(jnp.array([1, 2])).dtype
        dtype('float32')
    """
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def require_float(name: str, x: jax.Array) -> jax.Array:
    """Casts to float32 an array that must not have been held in integers, where a reward of 0.7 becomes 0.

    Raises:
        TypeError: `x` has an integer or boolean dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> require_float("scores", jnp.array([1]))
        Traceback (most recent call last):
        TypeError: scores have dtype int32, which cannot hold 0.7; make them float32 where they are computed.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{name} have dtype {x.dtype}, which cannot hold 0.7; make them float32 where they are computed."
        )
    return as_float(x)


def keep(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns `x` in float32 with 0 wherever the mask is 0.

    Apply it to the *inputs* of a formula whose derivative may be infinite: a zero cotangent times an infinite
    derivative is NaN, so masking the result alone is not enough.

    Example:
        >>> import jax.numpy as jnp
        >>> keep(jnp.array([1.0, jnp.nan]), jnp.array([1, 0])).tolist()
        [1.0, 0.0]
    """
    return jnp.where(mask != 0, as_float(x), 0)


def safe_divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Divides, giving 0 where the denominator is 0.

    Example:
        >>> float(safe_divide(3.0, 0.0)), float(safe_divide(3.0, 2.0))
        (0.0, 1.5)
    """
    numerator, denominator = as_float(numerator), as_float(denominator)
    return jnp.where(denominator != 0, numerator / jnp.where(denominator != 0, denominator, 1), 0)


def masked_sum(x: jax.Array, mask: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """Sums the elements that the mask keeps: ``sum_i mask_i x_i``.

    Args:
        x: any shape, any real dtype.
        mask: broadcastable to `x`; boolean or non-negative weights.
        axis: the axes to sum over; None for all.

    Returns:
        float32, the shape of `x` without `axis`.

    Example:
        >>> import jax.numpy as jnp
        >>> float(masked_sum(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([1, 1, 0])))
        3.0
    """
    mask = jnp.broadcast_to(mask, jnp.shape(x))
    return jnp.sum(keep(x, mask) * mask, axis=axis)


def masked_mean(
    x: jax.Array,
    mask: jax.Array,
    axis: int | tuple[int, ...] | None = None,
    denominator: jax.Array | float | None = None,
) -> jax.Array:
    """Averages the elements that the mask keeps: ``sum_i mask_i x_i / denominator``.

    Args:
        x: any shape, any real dtype.
        mask: broadcastable to `x`; boolean or non-negative weights.
        axis: the axes to average over; None for all.
        denominator: what the sum is divided by; None for the sum of the mask over `axis`. Pass the count of
            the whole batch to make the means of its parts add up to the mean of the whole.

    Returns:
        float32, the shape of `x` without `axis`; 0 where the denominator is 0.

    Example:
        >>> import jax.numpy as jnp
        >>> x, mask = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([0, 1, 1, 0])
        >>> float(masked_mean(x, mask))
        2.5
        >>> float(masked_mean(x[:2], mask[:2], denominator=2) + masked_mean(x[2:], mask[2:], denominator=2))
        2.5
    """
    if denominator is None:
        denominator = jnp.sum(as_float(jnp.broadcast_to(mask, jnp.shape(x))), axis=axis)
    return safe_divide(masked_sum(x, mask, axis), denominator)


def masked_variance(
    x: jax.Array, mask: jax.Array, axis: int | tuple[int, ...] | None = None, *, bessel: bool = False
) -> jax.Array:
    """Variance of the elements the mask keeps: ``sum_i mask_i (x_i - mean)^2 / n``, ``n = sum_i mask_i``.

    Args:
        x: any shape, any real dtype.
        mask: broadcastable to `x`; boolean or non-negative weights.
        axis: the axes to reduce; None for all.
        bessel: divide by ``n - 1`` (the sample variance of TRL and verl) instead of ``n`` (the population
            variance of lm-human-preferences).

    Returns:
        float32, the shape of `x` without `axis`; 0 where fewer than one (`bessel`: two) elements are kept.

    Example:
        >>> import jax.numpy as jnp
        >>> x, mask = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([0, 1, 1, 0])
        >>> float(masked_variance(x, mask)), float(masked_variance(x, mask, bessel=True))
        (0.25, 0.5)
    """
    mask = jnp.broadcast_to(mask, jnp.shape(x))
    count = jnp.sum(as_float(mask), axis=axis, keepdims=True)
    centred = keep(x, mask) - safe_divide(jnp.sum(keep(x, mask) * mask, axis=axis, keepdims=True), count)
    count = jnp.squeeze(count, axis)
    return safe_divide(masked_sum(centred**2, mask, axis), jnp.maximum(count - 1, 0) if bessel else count)


def masked_whiten(
    x: jax.Array, mask: jax.Array, *, shift_mean: bool = True, bessel: bool = False, epsilon: float = 1e-8
) -> jax.Array:
    """Scales the elements that the mask keeps to variance 1: ``(x - mean) / sqrt(variance + epsilon)``.

    The statistics are those of the whole array: give the whole batch, not a part of it.

    Args:
        x: any shape, any real dtype.
        mask: broadcastable to `x`; boolean or non-negative weights.
        shift_mean: move the mean to 0 (advantages); False puts it back after the scaling (rewards).
        bessel: use the sample variance, see `masked_variance`.
        epsilon: added to the variance.

    Returns:
        float32, the shape of `x`; 0 where the mask is 0.

    Source: Ziegler et al. 2019, code of lm-human-preferences, `whiten`.

    Example:
        >>> import jax.numpy as jnp
        >>> masked_whiten(jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([0, 1, 1, 0])).round(3).tolist()
        [0.0, -1.0, 1.0, 0.0]
    """
    mean = masked_mean(x, mask)
    whitened = (keep(x, mask) - mean) * jax.lax.rsqrt(masked_variance(x, mask, bessel=bessel) + epsilon)
    return keep(whitened if shift_mean else whitened + mean, mask)


def token_weights(mask_BxT: jax.Array, aggregate: str) -> jax.Array:
    """What each token counts in the mean over a batch that a loss is, as a mask to give that loss.

    To be divided by the number of tokens for "token_mean", by that of sequences for the others. With n tokens
    of a sequence and T slots it is, in the order below, ``1``, ``1 / n``, ``1`` and ``1 / T``.

    Args:
        mask_BxT: [B, T], 1 on the tokens of the response.
        aggregate: "token_mean" (PPO), a mean over all tokens, in which a long sequence weighs more than a
            short one; "seq_mean_token_mean" (GRPO), a mean over sequences of the means over their tokens;
            "seq_mean_token_sum" (RLOO), of their sums, which at ratio 1 has the gradient of REINFORCE; or
            "seq_mean_token_sum_norm" (Dr. GRPO), of their sums over a constant.

    Returns:
        [B, T] float32; 0 for a sequence without a token.

    Raises:
        ValueError: `aggregate` is none of the four.

    Source: Shao et al. 2024 (DeepSeekMath), equation 3; Ahmadian et al. 2024; Liu et al. 2025 (arXiv
        2503.20783), section 3.2; the names are verl's, `agg_loss`.

    Example:
        >>> import jax.numpy as jnp
        >>> token_weights(jnp.array([[1, 1, 0], [1, 0, 0]]), "seq_mean_token_mean").tolist()
        [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]
    """
    mask = as_float(mask_BxT)
    if aggregate in ("token_mean", "seq_mean_token_sum"):
        return mask
    if aggregate == "seq_mean_token_mean":
        return safe_divide(mask, jnp.sum(mask, axis=1, keepdims=True))
    if aggregate == "seq_mean_token_sum_norm":
        return mask / mask.shape[1]
    raise ValueError(
        f"token_weights: aggregate {aggregate!r} is unknown; choose token_mean, seq_mean_token_mean, "
        "seq_mean_token_sum or seq_mean_token_sum_norm."
    )
