"""Proximal policy optimisation: the losses of policy and critic, and what to watch while they fall.

What the tokens of a rollout are worth (KL, rewards, advantages) is computed once per rollout, in
`losses.rewards`.

Shapes: B sequences, T time steps of a response; a mask [B, T] is 1 on the tokens of the response. All
log-probabilities are in nats, at the sampling temperature.
"""

from functools import partial

import jax
import jax.numpy as jnp

from gptjax.losses.masked import as_float, keep, masked_mean, masked_variance, safe_divide
from gptjax.losses.rewards import kl_estimate

Metrics = dict[str, jax.Array]


def approx_kl(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    mask: jax.Array,
    *,
    denominator: jax.Array | float | None = None,
) -> jax.Array:
    """How far the update has moved: ``masked mean of (log_probs - old_log_probs)^2 / 2``, nats per token.

    Args:
        log_probs, old_log_probs: [B, T]; mask: [B, T]; denominator: as in `policy_loss`.

    Returns:
        float32 scalar.

    Source: Ziegler et al. 2019, code of lm-human-preferences, `approxkl`.

    Example:
        >>> import jax.numpy as jnp
        >>> float(approx_kl(jnp.array([1.0, 9.0]), jnp.array([0.0, 0.0]), jnp.array([1, 0])))
        0.5
    """
    return masked_mean(
        kl_estimate(keep(log_probs, mask) - keep(old_log_probs, mask), "k2"), mask, denominator=denominator
    )


def clip_fraction(
    ratio: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip: float,
    denominator: jax.Array | float | None = None,
) -> jax.Array:
    """Share of tokens whose gradient the clipping removes: ``mean [A clip(ratio) < A ratio]``.

    Args:
        ratio, advantages: [B, T]; mask: [B, T]; clip, denominator: as in `policy_loss`.

    Returns:
        float32 scalar in [0, 1].

    Source: Schulman et al. 2017 (PPO), section 3; the count as in TRL.

    Example:
        >>> import jax.numpy as jnp
        >>> float(clip_fraction(jnp.array([1.5, 1.5]), jnp.array([1.0, -1.0]), jnp.ones(2), clip=0.2))
        0.5
    """
    ratio, advantages = keep(ratio, mask), keep(advantages, mask)
    clipped = advantages * jnp.clip(ratio, 1 - clip, 1 + clip) < advantages * ratio
    return masked_mean(clipped, mask, denominator=denominator)


def policy_loss(
    log_probs_BxT: jax.Array,
    old_log_probs_BxT: jax.Array,
    advantages_BxT: jax.Array,
    mask_BxT: jax.Array,
    *,
    clip: float,
    denominator: jax.Array | float | None = None,
) -> tuple[jax.Array, Metrics]:
    """Clipped surrogate objective of PPO, to be minimised.

    ``loss = mean of max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip))``, ``ratio = exp(log_probs -
    old_log_probs)``

    Args:
        log_probs_BxT: [B, T] of the policy being trained.
        old_log_probs_BxT: [B, T] of the policy that sampled; a constant.
        advantages_BxT: [B, T]; a constant.
        mask_BxT: [B, T].
        clip: half-width of the trusted interval, 0.2 in the paper.
        denominator: the number of tokens in the whole minibatch; None for the sum of this mask.

    Returns:
        loss: float32 scalar.
        metrics: float32 scalars, means like the loss: `loss/policy_avg`, `policy/approxkl_avg`,
            `policy/clipfrac_avg`, `val/ratio`, and `val/ratio_spread`, the mean of ``(ratio - 1)^2``, from
            which `ratio_variance` makes `val/ratio_var` once the parts of a batch are added.

    Source: Schulman et al. 2017 (PPO, arXiv 1707.06347), equation 7.

    Example:
        >>> import jax.numpy as jnp
        >>> old, new = jnp.zeros((1, 2)), jnp.log(jnp.array([[1.5, 0.9]]))
        >>> loss, metrics = policy_loss(new, old, jnp.array([[1.0, 1.0]]), jnp.ones((1, 2)), clip=0.2)
        >>> round(float(loss), 4), float(metrics["policy/clipfrac_avg"])
        (-1.05, 0.5)
    """
    old_log_probs, advantages = jax.lax.stop_gradient((keep(old_log_probs_BxT, mask_BxT), advantages_BxT))
    advantages = keep(advantages, mask_BxT)
    log_probs = keep(log_probs_BxT, mask_BxT)
    ratio = jnp.exp(log_probs - old_log_probs)
    mean = partial(masked_mean, mask=mask_BxT, denominator=denominator)
    loss = mean(jnp.maximum(-advantages * ratio, -advantages * jnp.clip(ratio, 1 - clip, 1 + clip)))
    metrics = {
        "loss/policy_avg": loss,
        "policy/approxkl_avg": approx_kl(log_probs, old_log_probs, mask_BxT, denominator=denominator),
        "policy/clipfrac_avg": clip_fraction(ratio, advantages, mask_BxT, clip=clip, denominator=denominator),
        "val/ratio": mean(ratio),
        "val/ratio_spread": mean((ratio - 1) ** 2),
    }
    return loss, jax.lax.stop_gradient(metrics)


def kl_loss(
    log_probs_BxT: jax.Array,
    ref_log_probs_BxT: jax.Array,
    mask_BxT: jax.Array,
    *,
    estimator: str,
    denominator: jax.Array | float | None = None,
) -> tuple[jax.Array, Metrics]:
    """Divergence from the reference as a term of the loss, in place of its price in the reward.

    ``loss = mean of kl_estimate(log_probs - ref_log_probs)``

    What counts is the gradient. On tokens drawn from the policy that of k2 averages to the gradient of
    KL(policy, reference) in each state; that of k3, although k3 itself is unbiased, to the gradient of the
    other divergence, KL(reference, policy); that of k1 to 0, so k1 is refused.

    Args:
        log_probs_BxT: [B, T] of the policy being trained.
        ref_log_probs_BxT: [B, T] of the frozen reference; a constant.
        mask_BxT: [B, T]; what a token counts, as in `policy_loss`.
        estimator: "k2", or "k3" as in GRPO.
        denominator: as in `policy_loss`.

    Returns:
        loss: float32 scalar, nats.
        metrics: `loss/kl`.

    Raises:
        ValueError: the estimator is none of the two.

    Source: Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300), equation 4, with k3.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(kl_loss(jnp.array([0.5]), jnp.array([0.0]), jnp.ones(1), estimator="k2")[0]), 4)
        0.125
    """
    if estimator not in ("k2", "k3"):
        raise ValueError(f"kl_loss: estimator {estimator!r} gives no gradient on average; choose k2 or k3.")
    ref_log_probs = jax.lax.stop_gradient(keep(ref_log_probs_BxT, mask_BxT))
    estimates = kl_estimate(keep(log_probs_BxT, mask_BxT) - ref_log_probs, estimator)
    loss = masked_mean(estimates, mask_BxT, denominator=denominator)
    return loss, {"loss/kl": jax.lax.stop_gradient(loss)}


def ratio_variance(ratio: jax.Array, ratio_spread: jax.Array) -> jax.Array:
    """Variance of the ratio over tokens, `val/ratio_var`: ``mean (ratio - 1)^2 - (mean ratio - 1)^2``.

    Args:
        ratio, ratio_spread: `val/ratio` and `val/ratio_spread` of `policy_loss`, over the whole batch.

    Returns:
        float32 scalar.

    Example:
        >>> round(float(ratio_variance(1.1, 0.05)), 4)
        0.04
    """
    # Second moments about 1, near which the ratio lives: about 0 they would cancel in float32.
    return jnp.maximum(as_float(ratio_spread) - (as_float(ratio) - 1) ** 2, 0)


def value_loss(
    values_BxT: jax.Array,
    old_values_BxT: jax.Array,
    returns_BxT: jax.Array,
    mask_BxT: jax.Array,
    *,
    clip: float,
    denominator: jax.Array | float | None = None,
) -> tuple[jax.Array, Metrics]:
    """Clipped squared error of the critic.

    ``loss = mean of max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2``

    Args:
        values_BxT: [B, T] of the critic being trained.
        old_values_BxT: [B, T] of the critic at the rollout; a constant.
        returns_BxT: [B, T], from `generalized_advantages`; a constant.
        mask_BxT: [B, T].
        clip: how far a value may move in one batch, reward units.
        denominator: the number of tokens in the whole minibatch; None for the sum of this mask.

    Returns:
        loss: float32 scalar.
        metrics: float32 scalars, means like the loss: `loss/value_avg`, `val/clipfrac_avg`.

    Source: Ziegler et al. 2019, code of lm-human-preferences; OpenAI baselines `ppo2`.

    Example:
        >>> import jax.numpy as jnp
        >>> one = jnp.ones((1, 1))
        >>> float(value_loss(one, 0 * one, one, one, clip=0.5)[0])
        0.125
    """
    values = keep(values_BxT, mask_BxT)
    old_values, returns = jax.lax.stop_gradient((keep(old_values_BxT, mask_BxT), keep(returns_BxT, mask_BxT)))
    clipped = jnp.clip(values, old_values - clip, old_values + clip)
    error, clipped_error = (values - returns) ** 2, (clipped - returns) ** 2
    mean = partial(masked_mean, mask=mask_BxT, denominator=denominator)
    loss = 0.5 * mean(jnp.maximum(error, clipped_error))
    metrics = {"loss/value_avg": loss, "val/clipfrac_avg": mean(clipped_error > error)}
    return loss, jax.lax.stop_gradient(metrics)


def explained_variance(values: jax.Array, returns: jax.Array, mask: jax.Array) -> jax.Array:
    """Share of the returns' variance that the critic predicts: ``1 - Var(R - V) / Var(R)``.

    A critic that is off by a constant has 1 all the same.

    Args:
        values, returns, mask: [B, T], the whole batch: it is no sum over its parts.

    Returns:
        float32 scalar, at most 1; 0 when all returns are equal.

    Source: OpenAI baselines, `explained_variance`. The `var_explained` of lm-human-preferences has the mean
        squared error in place of ``Var(R - V)``.

    Example:
        >>> import jax.numpy as jnp
        >>> returns = jnp.array([1.0, 2.0, 3.0])
        >>> float(explained_variance(returns, returns, jnp.ones(3)))
        1.0
    """
    variance = masked_variance(returns, mask)
    return safe_divide(variance - masked_variance(keep(returns, mask) - keep(values, mask), mask), variance)
