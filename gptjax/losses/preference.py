"""Learning from preferences without a reward model: DPO, IPO, KTO and ORPO.

A log-probability here is that of a whole completion given its prompt, the sum over its tokens, in nats. All
arrays of a function broadcast against each other: [B] of single pairs, or [G, K, 1] against [G, 1, K] for
all pairs of K ranked completions, with weights [G, K, K].

Each loss has metrics under TRL's names, float32 scalars and means like the loss: `loss`,
`rewards/accuracies` (share of pairs in which the chosen completion has the higher implicit reward) and
`rewards/margins` (chosen minus rejected reward).
"""

from functools import partial

import jax
import jax.numpy as jnp

from gptjax.losses.masked import as_float, masked_mean, require_float, safe_divide
from gptjax.losses.odds import log_odds

Metrics = dict[str, jax.Array]


def log_ratios(policy: jax.Array, reference: jax.Array) -> jax.Array:
    """How much likelier a completion has become: ``log policy(y|x) - log reference(y|x)``.

    ``beta`` times it is DPO's implicit reward, up to a term of the prompt alone.

    Args:
        policy: any shape, floating, of the policy being trained.
        reference: the same of the frozen reference; a constant.

    Returns:
        float32.

    Raises:
        TypeError: one of them is not floating.

    Source: Rafailov et al. 2023 (DPO, arXiv 2305.18290), equation 5.

    Example:
        >>> import jax.numpy as jnp
        >>> log_ratios(jnp.array([-2.0]), jnp.array([-2.5])).tolist()
        [0.5]
    """
    policy = require_float("policy log-probabilities", policy)
    return policy - jax.lax.stop_gradient(require_float("reference log-probabilities", reference))


def _weighted(weights, denominator, *arrays):
    """The weighted mean over all pairs, as a function of values, and the arrays in the shape of the pairs.

    What has no weight is set to a number at which every formula has a finite value and slope.
    """
    weights = jnp.float32(1) if weights is None else as_float(weights)
    *arrays, weights = jnp.broadcast_arrays(*arrays, weights)
    harmless = [jnp.where(weights != 0, x, -1) for x in arrays]
    return partial(masked_mean, mask=weights, denominator=denominator), *harmless


def _reward_metrics(mean, chosen, rejected) -> Metrics:
    return {
        "rewards/chosen": mean(chosen),
        "rewards/rejected": mean(rejected),
        "rewards/accuracies": mean(chosen > rejected),
        "rewards/margins": mean(chosen - rejected),
    }


def dpo_loss(
    policy_chosen: jax.Array,
    policy_rejected: jax.Array,
    reference_chosen: jax.Array,
    reference_rejected: jax.Array,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    weights: jax.Array | None = None,
    denominator: jax.Array | float | None = None,
) -> tuple[jax.Array, Metrics]:
    """Direct preference optimisation.

    ``loss = mean of -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)``, ``h = (log policy - log
    reference)(chosen) - (log policy - log reference)(rejected)``, e the label smoothing.

    Args:
        policy_chosen, policy_rejected: floating, summed log-probabilities of the policy being trained.
        reference_chosen, reference_rejected: the same of the frozen reference; constants.
        beta: price of leaving the reference, 0.1 to 0.5 in the paper; small goes farther.
        label_smoothing: probability that a label is wrong, below 0.5 (conservative DPO).
        weights: of the pairs, non-negative; None weighs all alike.
        denominator: what the weighted sums are divided by; None for the sum of the weights.

    Returns:
        loss: float32 scalar, nats.
        metrics: see the module; and `rewards/chosen`, `rewards/rejected`, beta times the log-ratio.

    Raises:
        TypeError: a log-probability is not floating.
        ValueError: the label smoothing is outside [0, 0.5).

    Source: Rafailov et al. 2023 (arXiv 2305.18290), equation 7; label smoothing: Mitchell 2023, "A note on
        DPO with noisy preferences".

    Example:
        >>> import jax.numpy as jnp
        >>> pair = [jnp.array([x]) for x in (-2.0, -4.0, -3.0, -3.0)]
        >>> loss, metrics = dpo_loss(*pair, beta=0.5)
        >>> round(float(loss), 4), float(metrics["rewards/margins"])
        (0.3133, 1.0)
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be at least 0 and below 0.5.")
    chosen = beta * log_ratios(policy_chosen, reference_chosen)
    rejected = beta * log_ratios(policy_rejected, reference_rejected)
    mean, chosen, rejected = _weighted(weights, denominator, chosen, rejected)
    margin = chosen - rejected
    right, wrong = -jax.nn.log_sigmoid(margin), -jax.nn.log_sigmoid(-margin)
    loss = mean((1 - label_smoothing) * right + label_smoothing * wrong)
    return loss, jax.lax.stop_gradient({"loss": loss} | _reward_metrics(mean, chosen, rejected))


def ipo_loss(
    policy_chosen: jax.Array,
    policy_rejected: jax.Array,
    reference_chosen: jax.Array,
    reference_rejected: jax.Array,
    *,
    beta: float,
    chosen_tokens: jax.Array | float = 1.0,
    rejected_tokens: jax.Array | float = 1.0,
    weights: jax.Array | None = None,
    denominator: jax.Array | float | None = None,
) -> tuple[jax.Array, Metrics]:
    """Identity preference optimisation: a margin to reach, where DPO's grows for ever.

    ``loss = mean of (h - 1 / (2 beta))^2``, ``h = r(chosen) / n(chosen) - r(rejected) / n(rejected)``, r the
    log-ratio to the reference, n the number of tokens, or 1.

    Args:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected, weights, denominator: as in
            `dpo_loss`.
        beta: tau in the paper.
        chosen_tokens, rejected_tokens: n. Without them h is the paper's; with them a long completion has
            no larger margin than a short one, which the authors told TRL is what they ran.

    Returns:
        loss: float32 scalar, nats squared.
        metrics: as `dpo_loss`, of rewards ``beta r / n``.

    Raises:
        TypeError: a log-probability is not floating.

    Source: Azar et al. 2023 (arXiv 2310.12036), equation 17.

    Example:
        >>> import jax.numpy as jnp
        >>> pair = [jnp.array([x]) for x in (-2.0, -4.0, -3.0, -3.0)]
        >>> float(ipo_loss(*pair, beta=0.5)[0])
        1.0
    """
    chosen = safe_divide(log_ratios(policy_chosen, reference_chosen), chosen_tokens)
    rejected = safe_divide(log_ratios(policy_rejected, reference_rejected), rejected_tokens)
    mean, chosen, rejected = _weighted(weights, denominator, chosen, rejected)
    loss = mean((chosen - rejected - 1 / (2 * beta)) ** 2)
    metrics = {"loss": loss} | _reward_metrics(mean, beta * chosen, beta * rejected)
    return loss, jax.lax.stop_gradient(metrics)


def kto_reference_point(
    policy: jax.Array, reference: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """KTO's z0, an estimate of KL(policy, reference): ``max(0, mean of log policy - log reference)``.

    Args:
        policy, reference: log-probabilities of completions after prompts that are not their own.
        weights: of these; None weighs all alike.

    Returns:
        float32 scalar, nats; a constant. It is that of a whole batch: the maximum is not additive.

    Raises:
        TypeError: one of them is not floating.

    Source: Ethayarajh et al. 2024 (KTO, arXiv 2402.01306), section 4.

    Example:
        >>> import jax.numpy as jnp
        >>> float(kto_reference_point(jnp.array([-3.0, -2.0]), jnp.array([-4.0, -2.0])))
        0.5
    """
    mean, ratios = _weighted(weights, None, log_ratios(policy, reference))
    return jax.lax.stop_gradient(jnp.maximum(mean(ratios), 0))


def kto_loss(
    policy: jax.Array,
    reference: jax.Array,
    desirable: jax.Array,
    reference_point: jax.Array | float,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    weights: jax.Array | None = None,
    denominator: jax.Array | float | None = None,
) -> tuple[jax.Array, Metrics]:
    """Kahneman-Tversky optimisation: completions that are good or bad by themselves, without pairs.

    ``loss = mean of lambda (1 - sigmoid(+-beta (r - z0)))``, plus for a desirable completion, minus for
    another; r the log-ratio to the reference.

    Args:
        policy, reference: as `policy_chosen` and `reference_chosen` in `dpo_loss`, of any completions.
        desirable: boolean or 0/1, which completions are good.
        reference_point: z0, from `kto_reference_point`.
        beta: as in `dpo_loss`.
        desirable_weight, undesirable_weight: lambda; where one kind is rarer, the paper gives it the larger.
        weights, denominator: as in `dpo_loss`, of completions.

    Returns:
        loss: float32 scalar.
        metrics: `loss`; `rewards/accuracies`, the share of completions on their side of z0;
            `rewards/margins`, the distance ``beta (r - z0)`` towards that side.

    Raises:
        TypeError: a log-probability is not floating.

    Source: Ethayarajh et al. 2024 (arXiv 2402.01306), section 4.

    Example:
        >>> import jax.numpy as jnp
        >>> both, labels = jnp.array([-2.0, -2.0]), jnp.array([True, False])
        >>> round(float(kto_loss(both, jnp.array([-3.0, -1.0]), labels, 0.0, beta=1.0)[0]), 4)
        0.2689
    """
    ratios, desirable = jnp.broadcast_arrays(log_ratios(policy, reference), jnp.asarray(desirable) != 0)
    mean, ratios = _weighted(weights, denominator, ratios)
    distance = beta * (ratios - jax.lax.stop_gradient(as_float(reference_point)))
    towards = jnp.where(desirable, distance, -distance)
    # 1 - sigmoid(x) is sigmoid(-x), which does not cancel where x is large.
    loss = mean(jnp.where(desirable, desirable_weight, undesirable_weight) * jax.nn.sigmoid(-towards))
    metrics = {
        "loss": loss,
        "rewards/accuracies": mean(towards > 0),
        "rewards/margins": mean(towards),
    }
    return loss, jax.lax.stop_gradient(metrics)


def orpo_loss(
    policy_chosen: jax.Array,
    policy_rejected: jax.Array,
    chosen_tokens: jax.Array,
    rejected_tokens: jax.Array,
    *,
    beta: float,
    weights: jax.Array | None = None,
    denominator: jax.Array | float | None = None,
) -> tuple[jax.Array, Metrics]:
    """Odds-ratio preference optimisation: fine-tuning on the chosen completion, and a push off the other.

    ``loss = mean of -l(chosen) - beta log sigmoid(log_odds(l(chosen)) - log_odds(l(rejected)))``, l the mean
    log-probability of a completion's tokens. There is no reference.

    Args:
        policy_chosen, policy_rejected, weights, denominator: as in `dpo_loss`.
        chosen_tokens, rejected_tokens: how many tokens each sum is over, at least 1.
        beta: weight of the odds ratio, lambda in the paper: 0.1 to 0.25.

    Returns:
        loss: float32 scalar, nats.
        metrics: as `dpo_loss`, of rewards ``beta l``; and `nll` and `odds_ratio`, which add up to the loss.

    Raises:
        TypeError: a log-probability is not floating.

    Source: Hong et al. 2024 (arXiv 2403.07691), equations 6 and 7.

    Example:
        >>> import jax.numpy as jnp
        >>> one, two = jnp.log(jnp.array([0.5])), 2 * jnp.log(jnp.array([0.25]))
        >>> round(float(orpo_loss(one, two, jnp.array([1]), jnp.array([2]), beta=1.0)[0]), 4)
        0.9808
    """
    chosen = safe_divide(require_float("policy log-probabilities", policy_chosen), chosen_tokens)
    rejected = safe_divide(require_float("policy log-probabilities", policy_rejected), rejected_tokens)
    mean, chosen, rejected = _weighted(weights, denominator, chosen, rejected)
    nll = mean(-chosen)
    preference = mean(-beta * jax.nn.log_sigmoid(log_odds(chosen) - log_odds(rejected)))
    metrics = {"loss": nll + preference, "nll": nll, "odds_ratio": preference}
    metrics |= _reward_metrics(mean, beta * chosen, beta * rejected)
    return nll + preference, jax.lax.stop_gradient(metrics)
