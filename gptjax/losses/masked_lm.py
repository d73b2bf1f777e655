"""The losses of BERT's pre-training: hidden tokens, and whether the second segment followed the first.

Shapes: B rows, L length, P places to predict in a row, D model, V vocabulary. Everything is in nats.
"""

import jax
import jax.numpy as jnp

from gptjax.losses.lm import cross_entropy


def gather_places(hidden_BxLxD: jax.Array, places_BxP: jax.Array) -> jax.Array:
    """The hidden states at some places of each row: `[B, P, D]`.

    Example:
        >>> import jax.numpy as jnp
        >>> gather_places(jnp.arange(6.0).reshape(1, 3, 2), jnp.array([[2, 0]])).tolist()
        [[[4.0, 5.0], [0.0, 1.0]]]
    """
    return jnp.take_along_axis(hidden_BxLxD, places_BxP[..., None], axis=1)


def masked_lm_loss(
    token_logits_BxPxV: jax.Array,
    targets_BxP: jax.Array,
    place_weights_BxP: jax.Array,
    sentence_logits_Bx2: jax.Array,
    labels_B: jax.Array,
    row_weights_B: jax.Array,
    *,
    next_sentence: bool = True,
    denominators: dict[str, jax.Array | float] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """BERT's loss: ``L = mean over hidden tokens of -log p(token) + mean over rows of -log p(label)``.


    Args:
        token_logits_BxPxV: [B, P, V], any floating dtype, at the places to predict.
        targets_BxP: [B, P] integer, the tokens that were there.
        place_weights_BxP: [B, P], 0 where a row has fewer places.
        sentence_logits_Bx2: [B, 2], any floating dtype.
        labels_B: [B] integer, 0 where the second segment followed the first, 1 where it is a random one.
        row_weights_B: [B], 1, or 0 for a row that takes no part.
        next_sentence: False leaves the second mean out of the loss (the paper's ablation "No NSP", section
            5.1); its metrics stay.
        denominators: "places" and "rows" of the whole batch where the arrays are a part of it; None counts
            the weights of the arrays.

    Returns:
        the float32 loss, and metrics: loss, masked_loss, masked_accuracy, next_sentence_loss,
        next_sentence_accuracy.

    Source: Devlin et al. 2018, section 3.1 and appendix A.2. The released code adds 1e-5 to the first
        denominator.

    Example:
        >>> import jax.numpy as jnp
        >>> even = jnp.zeros((1, 2, 8)), jnp.array([[3, 0]]), jnp.array([[1, 0]])
        >>> loss, _ = masked_lm_loss(*even, jnp.zeros((1, 2)), jnp.array([1]), jnp.ones(1))
        >>> round(float(loss / jnp.log(2)), 4)
        4.0
    """
    counts = denominators or {"places": None, "rows": None}
    masked, m = cross_entropy(
        token_logits_BxPxV, targets_BxP, place_weights_BxP, denominator=counts["places"]
    )
    sentence, s = cross_entropy(sentence_logits_Bx2, labels_B, row_weights_B, denominator=counts["rows"])
    loss = masked + sentence if next_sentence else masked
    metrics = {"loss": loss, "masked_loss": m["loss"], "masked_accuracy": m["accuracy"]}
    metrics |= {"next_sentence_loss": s["loss"], "next_sentence_accuracy": s["accuracy"]}
    return loss, jax.lax.stop_gradient(metrics)
