"""What the tokens of a rollout are worth: KL to the reference, scores, rewards, advantages.

Shapes: B sequences, T time steps of a response. A mask [B, T] is 1 on the tokens of the response, which are
contiguous; padding on either side is never read. All log-probabilities are in nats, at the sampling
temperature.
"""

import jax
import jax.numpy as jnp

from gptjax.losses.masked import as_float, keep, require_float


def kl_estimate(log_ratio: jax.Array, kind: str) -> jax.Array:
    """Estimates KL(policy, reference) from samples y of the policy, one value a sample.

    With ``log_ratio = log policy(y) - log reference(y)``:
    ``k1 = log_ratio`` (unbiased, can be negative), ``k2 = log_ratio^2 / 2`` (biased, small variance),
    ``k3 = exp(-log_ratio) - 1 + log_ratio`` (unbiased, never negative).

    Args:
        log_ratio: any shape, floating; the samples must come from the policy, the other sign estimates
            another thing.
        kind: "k1", "k2" or "k3".

    Returns:
        float32, the shape of `log_ratio`, nats.

    Raises:
        ValueError: `kind` is none of the three.

    Source: Schulman 2020, "Approximating KL divergence", http://joschu.net/blog/kl-approx.html.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(kl_estimate(jnp.float32(0.5), kind)), 4) for kind in ("k1", "k2", "k3")]
        [0.5, 0.125, 0.1065]
    """
    log_ratio = as_float(log_ratio)
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return 0.5 * log_ratio**2
    if kind == "k3":
        return jnp.expm1(-log_ratio) + log_ratio
    raise ValueError(f"KL estimator {kind!r} is unknown; choose k1, k2 or k3.")


def exact_kl(logits: jax.Array, ref_logits: jax.Array, temperature: jax.Array | float = 1.0) -> jax.Array:
    """KL(policy, reference) of the next token, from both distributions whole.

    ``sum_v p_v (log p_v - log q_v)``, ``p = softmax(logits / T)``, ``q = softmax(ref_logits / T)``

    Its mean over the states that the policy visits is what `kl_estimate` estimates.

    Args:
        logits, ref_logits: [..., V], any floating dtype; minus infinity is a token that cannot be drawn.
        temperature: T.

    Returns:
        [...] float32, nats, at least 0 up to rounding; infinite where the reference lacks a token.

    Example:
        >>> import jax.numpy as jnp
        >>> p, q = jnp.log(jnp.array([0.75, 0.25])), jnp.log(jnp.array([0.5, 0.5]))
        >>> round(float(exact_kl(p, q)), 4)
        0.1308
    """
    log_p, log_q = (
        jax.nn.log_softmax(as_float(given) / temperature, axis=-1) for given in (logits, ref_logits)
    )
    return jnp.sum(jnp.exp(log_p) * jnp.where(jnp.isneginf(log_p), 0, log_p - log_q), axis=-1)


def cautious_scores(scores_MxB: jax.Array, penalty: float) -> jax.Array:
    """What an ensemble of reward models pays: less where its members disagree.

    ``mean over members - penalty * standard deviation over members``

    Args:
        scores_MxB: [M, B] floating, of M reward models with one zero and one unit.
        penalty: 0 pays the mean.

    Returns:
        [B] float32.

    Raises:
        TypeError: the scores are not floating.

    Source: Coste et al. 2023 (arXiv 2310.02743), section 3, with the deviation in the variance's place.

    Example:
        >>> import jax.numpy as jnp
        >>> cautious_scores(jnp.array([[1.0, 2.0], [3.0, 2.0]]), penalty=0.5).tolist()
        [1.5, 2.0]
    """
    scores = require_float("scores", scores_MxB)
    return scores.mean(0) - penalty * scores.std(0)


def eos_penalty(scores_B: jax.Array, has_eos_B: jax.Array, *, kind: str, penalty: float) -> jax.Array:
    """Punishes the responses that never ended.

    ``replace``: ``score = -penalty``; ``subtract``: ``score = score - penalty``; both where `has_eos_B` is
    false.

    Args:
        scores_B: [B] floating.
        has_eos_B: [B] boolean, whether the response (not the prompt) holds the stop token.
        kind: "replace" (Ziegler et al. 2019, with penalty 1) or "subtract" (TRL).
        penalty: reward units, at least 0.

    Returns:
        [B] float32.

    Raises:
        TypeError: the scores are not floating.
        ValueError: `kind` is none of the two, or the penalty is negative.

    Source: Ziegler et al. 2019, code of lm-human-preferences, `penalty_reward_value`.

    Example:
        >>> import jax.numpy as jnp
        >>> has_eos = jnp.array([True, False])
        >>> eos_penalty(jnp.array([2.0, 2.0]), has_eos, kind="subtract", penalty=0.5).tolist()
        [2.0, 1.5]
    """
    scores = require_float("scores", scores_B)
    if penalty < 0:
        raise ValueError(f"eos_penalty: penalty is {penalty}; give the amount to take away, at least 0.")
    if kind == "replace":
        return jnp.where(has_eos_B, scores, -penalty)
    if kind == "subtract":
        return jnp.where(has_eos_B, scores, scores - penalty)
    raise ValueError(f"eos_penalty: kind {kind!r} is unknown; choose replace or subtract.")


def empty_responses(mask_BxT: jax.Array) -> jax.Array:
    """Counts the rows without a token, to which no score can be given.

    Example:
        >>> import jax.numpy as jnp
        >>> int(empty_responses(jnp.array([[1, 1], [0, 0]])))
        1
    """
    return jnp.sum(jnp.all(mask_BxT == 0, axis=1))


def with_slot_after(mask_BxT: jax.Array) -> jax.Array:
    """The mask with the slot after each response added, where there is one; an empty row stays empty.

    Example:
        >>> import jax.numpy as jnp
        >>> with_slot_after(jnp.array([[1, 1, 0, 0], [1, 1, 1, 1]])).tolist()
        [[1, 1, 1, 0], [1, 1, 1, 1]]
    """
    return jnp.maximum(mask_BxT, jnp.pad(mask_BxT[:, :-1], ((0, 0), (1, 0))))


def token_rewards(
    scores_B: jax.Array,
    log_probs_BxT: jax.Array,
    ref_log_probs_BxT: jax.Array,
    mask_BxT: jax.Array,
    *,
    kl_coef: jax.Array | float,
    kl_estimator: str = "k1",
    score_at: str = "last_token",
) -> jax.Array:
    """Reward of each token: the price of leaving the reference, and the score at the end.

    ``r_t = -kl_coef * kl_estimate(log_probs_t - ref_log_probs_t) + [t is the slot of the score] score``

    Args:
        scores_B: [B] floating, the reward model's score of each response.
        log_probs_BxT, ref_log_probs_BxT: [B, T] of the sampling policy and of the frozen reference.
        mask_BxT: [B, T]. A row without a token has nowhere to put its score and gets nothing;
            `empty_responses` counts such rows.
        kl_coef: reward per nat.
        kl_estimator: see `kl_estimate`; k1 makes the sum over a response ``score - kl_coef * log-ratio``.
        score_at: "last_token", or "after_end": the slot after it (Huang et al. 2024, TRL), which is not of
            the response; a response that fills all T slots is paid at its last token. The advantages then
            need the mask of `with_slot_after`.

    Returns:
        [B, T] float32, 0 where the mask is 0, but for the score of "after_end".

    Raises:
        TypeError: the scores are not floating.
        ValueError: the estimator or the place of the score is unknown.

    Source: Ziegler et al. 2019, section 2, equation 2; Ouyang et al. 2022 (InstructGPT), section 3.5,
        equation 2; Huang et al. 2024 (arXiv 2403.17031), code of summarize_from_feedback_details.

    Example:
        >>> import jax.numpy as jnp
        >>> lp, ref = jnp.array([[-1.0, -1.0, 0.0]]), jnp.array([[-1.5, -1.0, 9.0]])
        >>> mask = jnp.array([[1, 1, 0]])
        >>> token_rewards(jnp.array([0.75]), lp, ref, mask, kl_coef=0.5).tolist()
        [[-0.25, 0.75, 0.0]]
    """
    scores = require_float("scores", scores_B)
    kl_BxT = kl_estimate(keep(log_probs_BxT, mask_BxT) - keep(ref_log_probs_BxT, mask_BxT), kl_estimator)
    if score_at not in ("last_token", "after_end"):
        raise ValueError(f"score_at {score_at!r} is unknown; choose last_token or after_end.")
    steps = jnp.arange(mask_BxT.shape[1])
    paid_BxT = with_slot_after(mask_BxT) if score_at == "after_end" else mask_BxT
    last_B = jnp.max(jnp.where(paid_BxT != 0, steps, -1), axis=1)
    score_BxT = jnp.where(steps == last_B[:, None], scores[:, None], 0)
    return score_BxT - kl_coef * kl_BxT


def generalized_advantages(
    rewards_BxT: jax.Array, values_BxT: jax.Array, mask_BxT: jax.Array, *, gamma: float, gae_lambda: float
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation over each response.

    ``delta_t = r_t + gamma V_{t+1} - V_t``, ``A_t = delta_t + gamma lambda A_{t+1}``, ``R_t = A_t + V_t``;
    V and A are 0 after the last token.

    Args:
        rewards_BxT: [B, T] floating.
        values_BxT: [B, T], V of the state *before* token t.
        mask_BxT: [B, T].
        gamma: discount; 1 when the score comes at the end.
        gae_lambda: 0 for one-step, 1 for Monte-Carlo advantages.

    Returns:
        advantages, returns: [B, T] float32, 0 where the mask is 0.

    Raises:
        TypeError: the rewards are not floating.

    Source: Schulman et al. 2016 (arXiv 1506.02438), equation 16.

    Example:
        >>> import jax.numpy as jnp
        >>> rewards, values = jnp.array([[0.0, 0.0, 1.0, 0.0]]), jnp.array([[0.0, 1.0, 2.0, 3.0]])
        >>> generalized_advantages(rewards, values, jnp.ones((1, 4)), gamma=0.5, gae_lambda=0.0)[0].tolist()
        [[0.5, 0.0, 0.5, -3.0]]
    """
    rewards, values = keep(require_float("rewards", rewards_BxT), mask_BxT), keep(values_BxT, mask_BxT)
    next_values = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    deltas = keep(rewards + gamma * next_values - values, mask_BxT)

    def step(advantage_B, time):
        delta_B, mask_B = time
        advantage_B = keep(delta_B + gamma * gae_lambda * advantage_B, mask_B)
        return advantage_B, advantage_B

    start = jnp.zeros_like(deltas[:, 0])
    _, advantages_TxB = jax.lax.scan(step, start, (deltas.T, mask_BxT.T), reverse=True)
    return advantages_TxB.T, advantages_TxB.T + values


def update_kl_coefficient(
    coef: jax.Array | float, kl: jax.Array | float, target: float, horizon: float, n: int
) -> jax.Array:
    """Adaptive KL coefficient: ``coef * (1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon)``.

    Args:
        coef: the coefficient that the batch was made with.
        kl: mean over responses of their summed per-token KL, nats.
        target: the KL to hold, nats (6 in the paper).
        horizon: responses over which to adapt (10000 in the paper).
        n: responses in the batch.

    Returns:
        float32 scalar, for the next batch.

    Raises:
        ValueError: the target or the horizon is not above 0.

    Source: Ziegler et al. 2019, section 2.2.

    Example:
        >>> round(float(update_kl_coefficient(0.1, 12.0, target=6.0, horizon=1000, n=100)), 4)
        0.102
    """
    if not (target > 0 and horizon > 0):
        raise ValueError(f"update_kl_coefficient: target {target} and horizon {horizon} must be above 0.")
    return as_float(coef) * (1 + jnp.clip(as_float(kl) / target - 1, -0.2, 0.2) * n / horizon)
