"""Advantages without a critic: several replies to one prompt are each other's baseline.

Shapes: G prompts, K replies of each (`valid` says which count).
"""

import jax
import jax.numpy as jnp

from gptjax.losses.masked import keep, masked_mean, masked_variance, require_float, safe_divide


def leave_one_out_advantages(rewards_GxK: jax.Array, valid_GxK: jax.Array) -> jax.Array:
    """RLOO: what a reply earned above the mean of the other replies to its prompt.

    ``A_i = r_i - 1 / (K - 1) sum over j != i of r_j``

    The baseline of a reply does not depend on it, so the gradient stays unbiased.

    Args:
        rewards_GxK: [G, K] floating; anything where not valid.
        valid_GxK: [G, K] boolean or 0/1; a reply that does not count is in no baseline and has advantage 0,
            as has one that is alone.

    Returns:
        [G, K] float32; every group's sum is 0.

    Raises:
        TypeError: the rewards are not floating.

    Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al. 2024
        (RLOO, arXiv 2402.14740).

    Example:
        >>> import jax.numpy as jnp
        >>> leave_one_out_advantages(jnp.array([[1.0, 0.0, 0.5]]), jnp.ones((1, 3))).tolist()
        [[0.75, -0.75, 0.0]]
    """
    rewards = keep(require_float("rewards", rewards_GxK), valid_GxK)
    others_GxK = jnp.sum(valid_GxK != 0, axis=1, keepdims=True) - 1
    # A_i = K / (K - 1) (r_i - mean): differences to the mean keep their digits where all rewards are large.
    mean_Gx1 = masked_mean(rewards, valid_GxK != 0, 1)[:, None]
    return keep((rewards - mean_Gx1) * safe_divide(others_GxK + 1, others_GxK), valid_GxK)


def group_normalised_advantages(
    rewards_GxK: jax.Array, valid_GxK: jax.Array, *, scale: bool = True, epsilon: float = 1e-4
) -> jax.Array:
    """GRPO: a reply's reward, standardised among the replies to its prompt.

    ``A_i = (r_i - mean(r)) / (std(r) + epsilon)``, std with K - 1 in its quotient.

    Args:
        rewards_GxK: [G, K] floating; anything where not valid.
        valid_GxK: [G, K] boolean or 0/1; a reply that does not count is in no mean and has advantage 0.
        scale: False leaves the quotient out (Dr. GRPO), which else gives prompts that are nearly always or
            never answered the most weight.
        epsilon: added to the standard deviation, 1e-4 in TRL, 1e-6 in verl.

    Returns:
        [G, K] float32; 0 for a group whose rewards are equal, which teaches nothing.

    Raises:
        TypeError: the rewards are not floating.

    Source: Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300), section 4.1.2; Liu et al. 2025 (Dr. GRPO, arXiv
        2503.20783), section 3.2.

    Example:
        >>> import jax.numpy as jnp
        >>> rewards, every = jnp.array([[3.0, 1.0, 2.0]]), jnp.ones((1, 3))
        >>> group_normalised_advantages(rewards, every, epsilon=0.0).tolist()
        [[1.0, -1.0, 0.0]]
        >>> group_normalised_advantages(2 * rewards, every, scale=False).tolist()
        [[2.0, -2.0, 0.0]]
    """
    rewards, valid = keep(require_float("rewards", rewards_GxK), valid_GxK), valid_GxK != 0
    centred = keep(rewards - masked_mean(rewards, valid, 1)[:, None], valid)
    if not scale:
        return centred
    deviation_Gx1 = jnp.sqrt(masked_variance(rewards, valid, 1, bessel=True))[:, None]
    # The mean of equal float32 numbers can be one digit off, which a small epsilon would make an advantage.
    low, high = (
        extreme(rewards, axis=1, where=valid, initial=other, keepdims=True)
        for extreme, other in ((jnp.min, jnp.inf), (jnp.max, -jnp.inf))
    )
    return jnp.where(high > low, safe_divide(centred, deviation_Gx1 + epsilon), 0)
