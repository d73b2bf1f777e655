"""Losses of a reward model on whole rankings: Plackett-Luce, and the best of n.

Shapes: G groups (prompts), K completions of a group (padded; `valid` says which exist).
"""

import jax
import jax.numpy as jnp

from gptjax.losses.masked import keep, masked_mean, require_float
from gptjax.losses.ranking import pair_matrix, ranking_metrics


def plackett_luce_loss(
    rewards_GxK: jax.Array,
    scores_GxK: jax.Array,
    valid_GxK: jax.Array,
    *,
    denominator: jax.Array | float | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The ranking as a row of choices: the best of all, then the best of the rest, and so on.

    ``loss = mean over groups of mean over k of -log(exp(r_k) / (exp(r_k) + sum over j of exp(r_j)))``

    where k runs over the completions that have a worse one, and j over those with s_j < s_k. Without ties the
    sum over k is minus the log-probability of the ranking under Plackett and Luce; the mean over its K - 1
    choices lets every group weigh the same. A tie is not ordered: a completion is chosen among itself and
    those that are worse, and its equals stand by. With K = 2 this is the loss of pairs; a group without a
    choice has no weight.

    Args:
        rewards_GxK: [G, K] floating, what the model gives; anything where not valid.
        scores_GxK: [G, K] human scores, higher is better; anything where not valid.
        valid_GxK: [G, K] boolean or 0/1, which completions exist.
        denominator: the number of groups that have a pair, of the whole batch; None for that of these arrays.

    Returns:
        loss: float32 scalar.
        metrics: see `ranking_metrics`, and `loss`.

    Raises:
        TypeError: the rewards are not floating.

    Source: Plackett 1975, The Analysis of Permutations; Luce 1959.

    Example:
        >>> import jax.numpy as jnp
        >>> loss, _ = plackett_luce_loss(
        ...     jnp.array([[2.0, 0.0, 1.0]]), jnp.array([[5, 3, 1]]), jnp.ones((1, 3), bool)
        ... )
        >>> round(float(loss), 4)  # the mean of log(1 + e^-2 + e^-1) and log(1 + e)
        0.8604
    """
    rewards = keep(require_float("rewards", rewards_GxK), valid_GxK)
    pairs_GxKxK = pair_matrix(keep(scores_GxK, valid_GxK), valid_GxK)
    candidates_GxKxK = pairs_GxKxK | jnp.eye(rewards.shape[1], dtype=bool)
    choice_GxK = _log_sum_exp(rewards[:, None, :], candidates_GxKxK) - rewards
    loss_G = masked_mean(choice_GxK, pairs_GxKxK.any(2), 1)
    return _over_groups(loss_G, rewards_GxK, scores_GxK, valid_GxK, denominator)


def best_of_n_loss(
    rewards_GxK: jax.Array,
    scores_GxK: jax.Array,
    valid_GxK: jax.Array,
    *,
    denominator: jax.Array | float | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Which one is the best? The cross-entropy of the softmax of the rewards; the rest has no order.

    ``loss = mean over groups of -log(sum over the best b of exp(r_b) / sum over all j of exp(r_j))``

    Where several tie for the best, it is the probability that one of them is chosen. A group whose
    completions all tie has no weight; with K = 2 this is the loss of pairs.

    Args:
        rewards_GxK, scores_GxK, valid_GxK, denominator: as in `plackett_luce_loss`.

    Returns:
        loss: float32 scalar.
        metrics: see `ranking_metrics`, and `loss`.

    Raises:
        TypeError: the rewards are not floating.

    Source: Ziegler et al. 2019, section 2, equation 1 (there n = 4).

    Example:
        >>> import jax.numpy as jnp
        >>> loss, _ = best_of_n_loss(
        ...     jnp.array([[2.0, 0.0, 1.0]]), jnp.array([[5, 3, 1]]), jnp.ones((1, 3), bool)
        ... )
        >>> round(float(loss), 4)  # log(1 + e^-2 + e^-1)
        0.4076
    """
    valid = valid_GxK != 0
    rewards = keep(require_float("rewards", rewards_GxK), valid_GxK)
    best_GxK = valid & ~pair_matrix(keep(scores_GxK, valid_GxK), valid_GxK).any(1)
    loss_G = _log_sum_exp(rewards, valid) - _log_sum_exp(rewards, best_GxK)
    return _over_groups(loss_G, rewards_GxK, scores_GxK, valid_GxK, denominator)


def _log_sum_exp(x: jax.Array, mask: jax.Array) -> jax.Array:
    """log of the sum of exp(x) over the last axis where the mask is set; over all where it is set nowhere."""
    return jax.nn.logsumexp(jnp.where(mask | ~mask.any(-1, keepdims=True), x, -jnp.inf), -1)


def _over_groups(loss_G, rewards_GxK, scores_GxK, valid_GxK, denominator):
    has_pair_G = pair_matrix(scores_GxK, valid_GxK).any((1, 2))
    loss = masked_mean(loss_G, has_pair_G, denominator=denominator)
    metrics = ranking_metrics(rewards_GxK, scores_GxK, valid_GxK, denominator=denominator)
    return loss, {"loss": jax.lax.stop_gradient(loss), **metrics}
