"""The loss of a reward model on human rankings.

Shapes: G groups (prompts), K completions of a group (padded; `valid` says which exist).
"""

import jax
import jax.numpy as jnp

from gptjax.losses.masked import as_float, keep, masked_mean, masked_sum, require_float


def pair_matrix(scores_GxK: jax.Array, valid_GxK: jax.Array) -> jax.Array:
    """Says which completion of a group the humans put before which.

    ``pairs[g, i, j] = scores[g, i] > scores[g, j]`` for valid i and j. A tie gives no pair, in either
    direction.

    Args:
        scores_GxK: [G, K] human scores, higher is better; anything where not valid.
        valid_GxK: [G, K] boolean or 0/1.

    Returns:
        [G, K, K] boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> pair_matrix(jnp.array([[3, 1, 1, 9]]), jnp.array([[1, 1, 1, 0]])).sum(-1).tolist()
        [[2, 0, 0, 0]]
    """
    valid = valid_GxK != 0
    better = scores_GxK[:, :, None] > scores_GxK[:, None, :]
    return better & valid[:, :, None] & valid[:, None, :]


def ranking_loss(
    rewards_GxK: jax.Array,
    scores_GxK: jax.Array,
    valid_GxK: jax.Array,
    *,
    margin_scale: float = 0.0,
    centring: float = 0.0,
    denominator: jax.Array | float | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Bradley-Terry loss over all ordered pairs of a group; every group weighs the same.

    ``loss = mean over groups of mean over pairs i > j of
    -log sigmoid(r_i - r_j - margin_scale (s_i - s_j)) + centring (r_i + r_j)^2``

    A group of K ranked completions is one element of the batch with its C(K, 2) pairs, so that each
    completion is run through the model once. Ties are dropped; a group without a pair (all tied, or one
    completion) has no weight.

    Args:
        rewards_GxK: [G, K] floating, what the model gives; anything where not valid.
        scores_GxK: [G, K] human scores, higher is better; anything where not valid.
        valid_GxK: [G, K] boolean or 0/1, which completions exist.
        margin_scale: reward units that a difference of one score unit asks for.
        centring: price of rewards whose mean over a pair is not 0; differences alone leave it free.
        denominator: the number of groups that have a pair, of the whole batch; None for that of these arrays.

    Returns:
        loss: float32 scalar.
        metrics: `loss`, and those of `ranking_metrics`.

    Raises:
        TypeError: the rewards are not floating.

    Source: Ouyang et al. 2022 (InstructGPT), section 3.5, equation 1; margin: Touvron et al. 2023 (Llama 2),
        section 3.2.2; centring: Eisenstein et al. 2023 (arXiv 2312.09244), as in TRL.

    Example:
        >>> import jax.numpy as jnp
        >>> loss, metrics = ranking_loss(
        ...     jnp.array([[2.0, 0.0, 1.0]]), jnp.array([[5, 3, 1]]), jnp.ones((1, 3), bool)
        ... )
        >>> round(float(loss), 4), round(float(metrics["accuracy"]), 4), int(metrics["pairs"])
        (0.5845, 0.6667, 3)
    """
    rewards = keep(require_float("rewards", rewards_GxK), valid_GxK)
    scores = keep(scores_GxK, valid_GxK)
    pairs_GxKxK = pair_matrix(scores, valid_GxK)
    difference_GxKxK = rewards[:, :, None] - rewards[:, None, :]
    margin_GxKxK = margin_scale * (scores[:, :, None] - scores[:, None, :])
    losses_GxKxK = -jax.nn.log_sigmoid(difference_GxKxK - margin_GxKxK)
    if centring:
        losses_GxKxK += centring * (rewards[:, :, None] + rewards[:, None, :]) ** 2
    loss = _mean_over_groups(losses_GxKxK, pairs_GxKxK, denominator)
    metrics = ranking_metrics(rewards, scores, valid_GxK, denominator=denominator)
    return loss, {"loss": jax.lax.stop_gradient(loss), **metrics}


def ranking_metrics(
    rewards_GxK: jax.Array,
    scores_GxK: jax.Array,
    valid_GxK: jax.Array,
    *,
    denominator: jax.Array | float | None = None,
) -> dict[str, jax.Array]:
    """What a reward model is right about, whatever its loss.

    Args:
        rewards_GxK, scores_GxK, valid_GxK, denominator: as in `ranking_loss`.

    Returns:
        float32 scalars without gradient. `accuracy` (share of pairs with r_i > r_j) and `margin` (r_i - r_j)
        are means over the pairs of a group, then over groups; `groups` (that have a pair), `pairs` and `ties`
        (pairs dropped because the scores are equal) are counts.

    Example:
        >>> import jax.numpy as jnp
        >>> metrics = ranking_metrics(jnp.array([[2.0, 0.0]]), jnp.array([[1, 0]]), jnp.ones((1, 2)))
        >>> float(metrics["accuracy"]), float(metrics["margin"]), int(metrics["ties"])
        (1.0, 2.0, 0)
    """
    rewards = keep(rewards_GxK, valid_GxK)
    pairs_GxKxK = pair_matrix(keep(scores_GxK, valid_GxK), valid_GxK)
    difference_GxKxK = rewards[:, :, None] - rewards[:, None, :]
    valid_count_G = masked_sum(jnp.ones_like(rewards), valid_GxK != 0, 1)
    metrics = {
        "accuracy": _mean_over_groups(difference_GxKxK > 0, pairs_GxKxK, denominator),
        "margin": _mean_over_groups(difference_GxKxK, pairs_GxKxK, denominator),
        "groups": jnp.sum(as_float(pairs_GxKxK.any((1, 2)))),
        "pairs": jnp.sum(as_float(pairs_GxKxK)),
        "ties": jnp.sum(valid_count_G * (valid_count_G - 1) / 2) - jnp.sum(as_float(pairs_GxKxK)),
    }
    return jax.lax.stop_gradient(metrics)


def _mean_over_groups(x_GxKxK, pairs_GxKxK, denominator):
    return masked_mean(
        masked_mean(x_GxKxK, pairs_GxKxK, (1, 2)), pairs_GxKxK.any((1, 2)), denominator=denominator
    )


def pairwise_loss(
    chosen_B: jax.Array,
    rejected_B: jax.Array,
    margin_B: jax.Array | None = None,
    *,
    centring: float = 0.0,
    denominator: jax.Array | float | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Bradley-Terry loss of pairs: `ranking_loss` with K = 2.

    ``loss = mean of -log sigmoid(chosen - rejected - margin) + centring (chosen + rejected)^2``

    Args:
        chosen_B: [B] floating, the rewards of the preferred completions.
        rejected_B: [B] floating, the rewards of the others.
        margin_B: [B], how far apart they should be; None for 0.
        centring: as in `ranking_loss`.
        denominator: the number of pairs of the whole batch; None for B.

    Returns:
        loss: float32 scalar.
        metrics: float32 scalars `loss`, `accuracy`, `margin` (chosen - rejected), means like the loss.

    Raises:
        TypeError: the rewards are not floating.

    Source: Bradley and Terry 1952; Stiennon et al. 2020, section 3.4.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(pairwise_loss(jnp.array([0.7]), jnp.array([0.0]))[0]), 4)
        0.4032
    """
    chosen = require_float("chosen rewards", chosen_B)
    rejected = require_float("rejected rewards", rejected_B)
    difference = chosen - rejected
    every = jnp.ones_like(difference)
    margin = 0.0 if margin_B is None else as_float(margin_B)
    losses = -jax.nn.log_sigmoid(difference - margin)
    if centring:
        losses += centring * (chosen + rejected) ** 2
    loss = masked_mean(losses, every, denominator=denominator)
    metrics = {
        "loss": loss,
        "accuracy": masked_mean(difference > 0, every, denominator=denominator),
        "margin": masked_mean(difference, every, denominator=denominator),
    }
    return loss, jax.lax.stop_gradient(metrics)
