"""Label smoothing: part of the target's probability goes to the other tokens.

Shapes: V vocabulary.
"""

from typing import Literal

import jax
import jax.numpy as jnp


def smoothing_mass(epsilon: float, vocabulary: int, over: Literal["all", "others"]) -> float:
    """Probability that label smoothing gives each token but the target.

    Args:
        epsilon: what the target gives away, 0.1 in Vaswani et al. 2017, section 5.4.
        vocabulary: V.
        over: "all" shares it among all V tokens, so that the target keeps ``1 - epsilon + epsilon / V``
            (Szegedy et al. 2015, section 7); "others" among the V - 1 others, so that it keeps ``1 -
            epsilon`` (tensor2tensor's `smoothing_cross_entropy`, which also subtracts the entropy of the
            smoothed target).

    Raises:
        ValueError: `epsilon` is outside [0, 1), or `over` is another word.

    Example:
        >>> smoothing_mass(0.3, 4, "all"), smoothing_mass(0.3, 4, "others")
        (0.075, 0.09999999999999999)
    """
    if not 0 <= epsilon < 1:
        raise ValueError(f"label_smoothing is {epsilon}; it must be at least 0 and below 1.")
    if over not in ("all", "others"):
        raise ValueError(f"smooth_over is {over!r}; it must be 'all' or 'others'.")
    return epsilon / (vocabulary if over == "all" else vocabulary - 1)


def smoothing_excess(logits: jax.Array, target_logits: jax.Array, mass: float) -> jax.Array:
    """What smoothing adds to each token's negative log-likelihood.

    With ``q_v = mass`` for every v but the target, ``-sum_v q_v log p_v`` is the negative log-likelihood plus
    ``mass sum_v (logits[target] - logits_v)``: the normaliser falls out.

    Args:
        logits: [..., V] float32.
        target_logits: [...] float32, the target's among them.
        mass: from `smoothing_mass`.

    Returns:
        [...] float32, nats.

    Example:
        >>> float(smoothing_excess(jnp.array([2.0, 1.0, 0.0]), jnp.array(2.0), 0.125))
        0.375
    """
    return mass * (logits.shape[-1] * target_logits - jnp.sum(logits, axis=-1))
