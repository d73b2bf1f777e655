"""The loss of fine-tuning on a task, with language modelling beside it.

Shapes: B examples, S sequences of an example, L length, K classes, D model, V vocabulary; losses are in nats.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gptjax.losses.lm import cross_entropy, linear_cross_entropy


def task_loss(
    logits_BxK: jax.Array, labels_B: jax.Array, weights_B: jax.Array, *, denominator=None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of classes, or of the answers of a choice: ``mean over examples of -log softmax[label]``.

    Args:
        logits_BxK: [B, K], any floating dtype.
        labels_B: [B] integer.
        weights_B: [B], 1, or 0 for an example that takes no part.
        denominator: examples of the whole batch; None sums the weights.

    Returns:
        the float32 loss, and metrics: loss, accuracy.

    Source: Radford et al. 2018, section 3.2, equation 4; Devlin et al. 2018, section 4.1.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(task_loss(jnp.zeros((1, 4)), jnp.array([2]), jnp.ones(1))[0] / jnp.log(2)), 4)
        2.0
    """
    loss, metrics = cross_entropy(logits_BxK, labels_B, weights_B, denominator=denominator)
    return loss, {"loss": metrics["loss"], "accuracy": metrics["accuracy"]}


def token_weights(ends_BxS: jax.Array, length: int) -> jax.Array:
    """What each token's prediction counts in the auxiliary loss: ``1 / (S n_s)`` for the n_s of a sequence.

    A sequence whose last token stands at place n predicts its tokens 1 to n from its places 0 to n - 1. Every
    sequence counts alike, whatever its length, and so does every example.

    Args:
        ends_BxS: [B, S] integer, the place of each sequence's last token.
        length: L.

    Returns:
        [B, S, L - 1] float32; 0 from place n on.

    Source: the released code of Radford et al. 2018 divides each sequence's sum by its number of tokens.

    Example:
        >>> import jax.numpy as jnp
        >>> token_weights(jnp.array([[1, 2]]), 4).tolist()
        [[[0.5, 0.0, 0.0], [0.25, 0.25, 0.0]]]
    """
    real = jnp.arange(length - 1) < ends_BxS[..., None]
    return real / (ends_BxS.shape[1] * jnp.maximum(ends_BxS, 1)[..., None]).astype(jnp.float32)


def auxiliary_loss(
    hidden_BxSxLxD: jax.Array,
    tokens_BxSxL: jax.Array,
    ends_BxS: jax.Array,
    weights_B: jax.Array,
    output_matrix: jax.Array,
    *,
    transposed: bool,
    denominator=None,
    matmul_dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Language modelling of the task's own sequences: each one's mean token loss, averaged.

    Fine-tuning minimises ``L3 = L2 + lambda L1``, L2 the `task_loss` and L1 this, lambda 0.5.

    Args:
        hidden_BxSxLxD: [B, S, L, D], any floating dtype, of a causal model.
        tokens_BxSxL: [B, S, L] integer.
        ends_BxS: [B, S] integer, see `token_weights`.
        weights_B: [B], as in `task_loss`.
        output_matrix: [D, V], or [V, D] if `transposed`.
        transposed: see there.
        denominator: as in `task_loss`.
        matmul_dtype: as in `linear_cross_entropy`.

    Returns:
        the float32 loss.

    Source: Radford et al. 2018, section 3.2, equation 5.

    Example:
        >>> import jax.numpy as jnp
        >>> hidden, tokens, matrix = jnp.ones((1, 1, 3, 2)), jnp.array([[[1, 2, 0]]]), jnp.zeros((2, 8))
        >>> loss = auxiliary_loss(hidden, tokens, jnp.array([[1]]), jnp.ones(1), matrix, transposed=False)
        >>> round(float(loss / jnp.log(2)), 4)
        3.0
    """
    B, S, L = tokens_BxSxL.shape
    weights = token_weights(ends_BxS, L) * weights_B[:, None, None]
    return linear_cross_entropy(
        hidden_BxSxLxD[:, :, :-1].reshape(B * S, L - 1, -1),
        output_matrix,
        tokens_BxSxL[:, :, 1:].reshape(B * S, L - 1),
        weights.reshape(B * S, L - 1),
        transposed=transposed,
        matmul_dtype=matmul_dtype,
        denominator=jnp.sum(weights_B) if denominator is None else denominator,
    )[0]
