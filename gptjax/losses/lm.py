"""Language-model losses: token log-probabilities, entropy, and cross-entropy with whole or chunked logits.

Shapes: B batch, L length, D model, V vocabulary; N chunks of C tokens. Everything is in nats.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gptjax.losses.masked import as_float, keep, masked_mean, masked_sum, safe_divide
from gptjax.losses.smoothing import smoothing_excess, smoothing_mass


def _with_temperature(logits: jax.Array, temperature: jax.Array | float) -> jax.Array:
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(
            f"temperature is {temperature}; it must be above 0 (greedy decoding has no log-probabilities)."
        )
    return as_float(logits) / temperature


def _at_targets(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Gathers the target's logit; NaN for a target outside the vocabulary, where indexing would wrap."""
    vocabulary = logits.shape[-1]
    index = jnp.where(targets < 0, vocabulary, targets)[..., None]
    return jnp.take_along_axis(logits, index, axis=-1, mode="fill", fill_value=jnp.nan)[..., 0]


def _token_statistics(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns log Z, the negative log-likelihood, and whether the target is the one best token, per token."""
    log_z = jax.nn.logsumexp(logits, axis=-1)
    target_logits = _at_targets(logits, targets)
    # Counting the logits that reach the target's costs one fused pass; argmax costs a quarter of the step on
    # a CPU.
    best = jnp.sum(logits >= target_logits[..., None], axis=-1) == 1
    return log_z, log_z - target_logits, best


def token_log_probs(
    logits_BxLxV: jax.Array, targets_BxL: jax.Array, temperature: jax.Array | float = 1.0
) -> jax.Array:
    """Log-probability of each target: ``logits[target] / T - logsumexp(logits / T)``.

    Args:
        logits_BxLxV: [B, L, V] (or any leading shape), any floating dtype; position l predicts `targets[:,
            l]`.
        targets_BxL: [B, L] integer.
        temperature: T, the one the tokens were sampled at: old, new and reference policy must share it, or
            the KL of a policy to itself is not 0.

    Returns:
        [B, L] float32, nats; NaN for a target outside [0, V).

    Raises:
        ValueError: the temperature is a number not above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> token_log_probs(jnp.log(jnp.array([[[0.25, 0.75]]])), jnp.array([[1]])).round(4).tolist()
        [[-0.28769999742507935]]
    """
    logits = _with_temperature(logits_BxLxV, temperature)
    return _at_targets(logits, targets_BxL) - jax.nn.logsumexp(logits, axis=-1)


def entropy(logits: jax.Array, temperature: jax.Array | float = 1.0) -> jax.Array:
    """Entropy of the next-token distribution: ``-sum_v p_v log p_v`` with ``p = softmax(logits / T)``.

    Args:
        logits: [..., V], any floating dtype; minus infinity is a token that cannot be drawn.
        temperature: T.

    Returns:
        [...] float32, nats.

    Raises:
        ValueError: the temperature is a number not above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(entropy(jnp.zeros(4)) / jnp.log(2)), 4)
        2.0
    """
    log_probs = jax.nn.log_softmax(_with_temperature(logits, temperature), axis=-1)
    return -jnp.sum(jnp.exp(log_probs) * jnp.where(jnp.isneginf(log_probs), 0, log_probs), axis=-1)


def cross_entropy(
    logits_BxLxV: jax.Array,
    targets_BxL: jax.Array,
    loss_mask_BxL: jax.Array,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    smooth_over: Literal["all", "others"] = "all",
    denominator: jax.Array | float | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Masked next-token cross-entropy with an optional z-loss and optional label smoothing.

    ``loss = sum mask (log Z - sum_v q_v logits_v + z_loss (log Z)^2) / denominator``, ``Z = sum_v
    exp(logits_v)``, q the target alone, or smoothed.

    Args:
        logits_BxLxV: [B, L, V], any floating dtype; position l predicts `targets[:, l]`.
        targets_BxL: [B, L] integer; anything (-100 too) where the mask is 0.
        loss_mask_BxL: [B, L] boolean or weights.
        z_loss: weight of the squared log-normaliser; 1e-4 in PaLM.
        label_smoothing, smooth_over: what the target gives away to other tokens, 0.1 in Vaswani et al. 2017,
            and to which: `epsilon` and `over` of `smoothing_mass`.
        denominator: the number of tokens in the whole batch; None for the sum of this mask.

    Returns:
        loss: float32 scalar, nats per token; NaN if a token that counts has a target outside [0, V).
        metrics: float32 scalars, means like the loss: `loss` (the cross-entropy alone), `z_loss` (its
            weighted term), with label smoothing `smoothing` (what it adds; these add up to the loss) and
            `accuracy` (the target's logit is above all others).

    Source: Radford et al. 2018 (GPT-1), equation 1; z-loss: Chowdhery et al. 2022 (PaLM), section 5; label
        smoothing: Vaswani et al. 2017, section 5.4.

    Example:
        >>> import jax.numpy as jnp
        >>> loss, metrics = cross_entropy(jnp.zeros((1, 2, 8)), jnp.array([[3, -100]]), jnp.array([[1, 0]]))
        >>> round(float(loss / jnp.log(2)), 4)
        3.0
    """
    logits = keep(logits_BxLxV, loss_mask_BxL[..., None])
    log_z, nll, best = _token_statistics(logits, targets_BxL)
    mean = partial(masked_mean, mask=loss_mask_BxL, denominator=denominator)
    metrics = {"loss": mean(nll), "z_loss": z_loss * mean(log_z**2), "accuracy": mean(best)}
    if mass := smoothing_mass(label_smoothing, logits.shape[-1], smooth_over):
        metrics["smoothing"] = mean(smoothing_excess(logits, log_z - nll, mass))
    return _total(metrics), jax.lax.stop_gradient(metrics)


def _total(metrics: dict[str, jax.Array]) -> jax.Array:
    total = metrics["loss"] + metrics["z_loss"]
    return total + metrics["smoothing"] if "smoothing" in metrics else total


def linear_cross_entropy(
    hidden_BxLxD: jax.Array,
    unembedding: jax.Array,
    targets_BxL: jax.Array,
    loss_mask_BxL: jax.Array,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    smooth_over: Literal["all", "others"] = "all",
    chunk_size: int = 1024,
    matmul_dtype: DTypeLike = jnp.float32,
    transposed: bool = False,
    denominator: jax.Array | float | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`cross_entropy` of ``hidden @ unembedding``, holding the logits of at most `chunk_size` tokens.

    Under differentiation the gradients of both factors are formed chunk by chunk in the forward pass, while
    the logits are at hand, and only scaled in the backward pass; nothing is computed twice. First derivatives
    with respect to `hidden_BxLxD` and `unembedding` only.

    Each chunk takes tokens from all rows of the batch, so a batch sharded by rows stays so in every chunk.

    Args:
        hidden_BxLxD: [B, L, D], any floating dtype, the output of the last norm.
        unembedding: [D, V], any floating dtype.
        targets_BxL, loss_mask_BxL, z_loss, label_smoothing, smooth_over, denominator: as in `cross_entropy`.
        chunk_size: the most tokens whose logits are held at a time.
        matmul_dtype: what the factors of the three products are cast to; the products themselves are float32.
        transposed: `unembedding` is [V, D], the token embedding of a tied model.

    Returns:
        As `cross_entropy`.

    Raises:
        ValueError: `chunk_size` is below 1.

    Source: the idea of Wijmans et al. 2024 (Cut Your Losses, arXiv 2411.09009) and of Liger Kernel's fused
        linear cross-entropy, as a scan.

    Example:
        >>> import jax.numpy as jnp
        >>> hidden, unembedding = jnp.ones((1, 3, 2)), jnp.zeros((2, 8))
        >>> loss, _ = linear_cross_entropy(hidden, unembedding, jnp.array([[1, 2, 3]]), jnp.ones((1, 3)))
        >>> round(float(loss / jnp.log(2)), 4)
        3.0
    """
    if chunk_size < 1:
        raise ValueError(f"linear_cross_entropy: chunk_size is {chunk_size}; a chunk holds at least 1 token.")
    if denominator is None:
        denominator = masked_sum(jnp.ones_like(loss_mask_BxL), loss_mask_BxL)
    hidden_BxLxD = jnp.where(loss_mask_BxL[..., None] != 0, hidden_BxLxD, 0)
    # With [V, D] the three products are contractions XLA's CPU backend runs at full speed; with [D, V] the
    # weight gradient is a tenth slower than one transposition outside the loop costs.
    table_VxD = unembedding if transposed else unembedding.T
    weights_BxL = jax.lax.stop_gradient(safe_divide(loss_mask_BxL, denominator))
    hidden, targets, weights = (_chunks(x, chunk_size) for x in (hidden_BxLxD, targets_BxL, weights_BxL))
    mass = smoothing_mass(label_smoothing, table_VxD.shape[0], smooth_over)
    loss, metrics = _chunked(hidden, table_VxD, targets, weights, z_loss, mass, jnp.dtype(matmul_dtype))
    return loss, jax.lax.stop_gradient(metrics)


def _chunks(x_BxL: jax.Array, chunk_size: int) -> jax.Array:
    """Cuts [B, L, ...] into [N, C, ...] with C <= chunk_size, padded with zeros; a chunk spans the rows."""
    batch, length = x_BxL.shape[:2]
    row_chunks = -(-batch // chunk_size)
    rows = -(-batch // row_chunks)
    column_chunks = -(-length // max(1, chunk_size // rows))
    columns = -(-length // column_chunks)
    features = x_BxL.shape[2:]
    padding = [(0, rows * row_chunks - batch), (0, columns * column_chunks - length)]
    x = jnp.pad(x_BxL, padding + [(0, 0)] * len(features))
    x = x.reshape(rows, row_chunks, column_chunks, columns, *features)
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(row_chunks * column_chunks, rows * columns, *features)


def _product(a: jax.Array, b: jax.Array, contract: tuple[int, int], dtype: jnp.dtype) -> jax.Array:
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    output = jnp.promote_types(dtype, jnp.float32)
    # Left to themselves, NVIDIA GPUs multiply float32 as TF32 and TPUs as bfloat16: three digits.
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a.astype(dtype), b.astype(dtype), dimensions, precision=precision, preferred_element_type=output
    )


def _chunk_sums(logits_CxV, targets_C, weights_C, z_loss, mass):
    """Returns log Z [C] and the weighted sums that make up the loss and its metrics."""
    log_z, nll, best = _token_statistics(logits_CxV, targets_C)
    terms = {"loss": nll, "z_loss": z_loss * log_z**2, "accuracy": best}
    if mass:
        terms["smoothing"] = smoothing_excess(logits_CxV, log_z - nll, mass)
    return log_z, {name: masked_sum(term, weights_C) for name, term in terms.items()}


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _chunked(hidden_NxCxD, table_VxD, targets_NxC, weights_NxC, z_loss, mass, dtype):
    table = table_VxD.astype(dtype)

    def step(_, chunk):
        hidden_CxD, targets_C, weights_C = chunk
        logits_CxV = _product(hidden_CxD, table, (1, 1), dtype)
        return None, _chunk_sums(logits_CxV, targets_C, weights_C, z_loss, mass)[1]

    _, sums = jax.lax.scan(step, None, (hidden_NxCxD, targets_NxC, weights_NxC))
    metrics = jax.tree.map(jnp.sum, sums)
    return _total(metrics), metrics


def _chunked_forward(hidden_NxCxD, table_VxD, targets_NxC, weights_NxC, z_loss, mass, dtype):
    table = table_VxD.astype(dtype)
    vocabulary = jnp.arange(table.shape[0])

    def step(dtable, chunk):
        hidden_CxD, targets_C, weights_C = chunk
        logits_CxV = _product(hidden_CxD, table, (1, 1), dtype)
        log_z, sums = _chunk_sums(logits_CxV, targets_C, weights_C, z_loss, mass)
        probs_CxV = jnp.exp(logits_CxV - log_z[:, None])
        target_CxV = targets_C[:, None] == vocabulary
        if mass:
            target_CxV = (1 - mass * len(vocabulary)) * target_CxV + mass
        dlogits_CxV = weights_C[:, None] * (probs_CxV * (1 + 2 * z_loss * log_z[:, None]) - target_CxV)
        dhidden_CxD = _product(dlogits_CxV, table, (1, 0), dtype)
        dtable = dtable + _product(dlogits_CxV, hidden_CxD, (0, 0), dtype)
        return dtable, (sums, dhidden_CxD.astype(hidden_CxD.dtype))

    zeros = jnp.zeros(table.shape, jnp.promote_types(dtype, jnp.float32))
    dtable, (sums, dhidden) = jax.lax.scan(step, zeros, (hidden_NxCxD, targets_NxC, weights_NxC))
    metrics = jax.tree.map(jnp.sum, sums)
    return (_total(metrics), metrics), (dhidden, dtable.astype(table_VxD.dtype))


def _chunked_backward(z_loss, mass, dtype, gradients, cotangents):
    scale, _ = cotangents
    dhidden, dtable = (gradient * scale.astype(gradient.dtype) for gradient in gradients)
    return dhidden, dtable, None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)
