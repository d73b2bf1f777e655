"""What PPO learns from: experience made of rollouts, and the two losses on it.

`config` is the `PpoConfig` of the run. Legend: B prompts of an iteration, T response slots.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from gptjax.losses.masked import masked_mean, masked_whiten, token_weights
from gptjax.losses.ppo import explained_variance, kl_loss, policy_loss, value_loss
from gptjax.losses.rewards import (
    cautious_scores,
    empty_responses,
    eos_penalty,
    generalized_advantages,
    kl_estimate,
    token_rewards,
    with_slot_after,
)
from gptjax.stages.adapters import attached
from gptjax.stages.language_loss import count_tokens, make_language_loss
from gptjax.stages.rollout import Rollout, cut_replies, response_log_probs, response_values, reward_scores


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Experience:
    """A rollout and what the updates need of it; all float32 `[B, T]`.

    `value_mask` is 1 where the critic learns: on the reply's tokens, and on the slot after them where the
    score is paid there. The values, rewards and returns are 0 outside it, the others outside the reply.
    The last two are there where the KL is in the loss; `kl_coef`, `[B]`, is one number, in rows like the
    rest.
    """

    rollout: Rollout
    old_log_probs: jax.Array
    old_values: jax.Array
    value_mask: jax.Array
    rewards: jax.Array
    advantages: jax.Array
    returns: jax.Array
    ref_log_probs: jax.Array | None = None
    kl_coef: jax.Array | None = None


def make_score(config, language):
    """Jitted `score(params, rollout)`: `response_log_probs` at the sampling temperature."""
    return jax.jit(lambda p, r: response_log_probs(language, attached(p), r, config.sampling.temperature))


def reply_metrics(rollout: Rollout, log_probs, ref_log_probs, entropies, ended) -> dict[str, jax.Array]:
    """What is watched of replies before they are learnt from; `ended`, bool `[B]`, says which have ended."""
    mask = rollout.mask
    log_ratio = (log_probs - ref_log_probs) * mask
    kl = {kind: kl_estimate(log_ratio, kind).sum(1).mean() for kind in ("k1", "k2", "k3")}
    gaps = jnp.abs((log_probs - rollout.sampler_log_probs) * mask)
    mult_prob_error_B = masked_mean(jnp.exp(gaps), mask, axis=1)  # 0 of an empty reply, which does not count
    return {
        "objective/kl": kl["k1"],
        "objective/kl_k2": kl["k2"],
        "objective/kl_k3": kl["k3"],
        "objective/entropy": (entropies * mask).sum(1).mean(),
        "policy/entropy_avg": masked_mean(entropies, mask),
        "val/num_eos_tokens": ended.sum().astype(jnp.float32),
        "val/eos_rate": ended.mean(),
        "val/response_length": mask.sum(1).mean(),
        "val/empty_responses": empty_responses(mask).astype(jnp.float32),
        "val/sampler_gap": gaps.max(),
        "max_seq_mult_prob_error": mult_prob_error_B.max(),
        "mean_seq_mult_prob_error": masked_mean(mult_prob_error_B, mask.any(1)),
    }


def credit(config, rewards, values, mask, value_mask):
    """Whitened advantages, their mask that of the reply, and returns, made before the whitening.

    The statistics are those of the rows given: a whole rollout, or a minibatch of it.

    Returns:
        advantages, returns: float32 `[B, T]`.
    """
    whiten = partial(masked_whiten, bessel=config.conventions.variance == "sample")
    shaped = whiten(rewards, value_mask, shift_mean=False) if config.whiten_rewards else rewards
    advantages, returns = generalized_advantages(
        shaped, values, value_mask, gamma=config.gamma, gae_lambda=config.gae_lambda
    )
    return whiten(advantages, mask) * mask, returns


def make_experience(config, score, scalar, cut_ids: tuple[int, ...] = ()):
    """`experience(policy, critic, reference, reward, rollout, kl_coef) -> (Experience, metrics)`.

    `cut_ids` are those of `conventions.cut_at`. With `config.ensemble`, `reward` is a tuple of parameters.
    """
    choices = config.conventions

    @jax.jit
    def judge(log_probs, entropies, ref_log_probs, critic, reward, rollout: Rollout, kl_coef):
        mask = rollout.mask
        value_mask = with_slot_after(mask) if choices.score_at == "after_end" else mask
        values = response_values(scalar, critic, rollout, value_mask)
        read = cut_replies(rollout, cut_ids, choices.cut_after) if cut_ids else rollout
        members = reward if config.ensemble else (reward,)
        scores_MxB = jnp.stack([reward_scores(scalar, member, read) for member in members])
        raw_scores = cautious_scores(scores_MxB, config.disagreement_penalty)
        scores = eos_penalty(
            raw_scores, read.ended, kind=config.missing_eos, penalty=config.missing_eos_penalty
        )
        rewards = token_rewards(
            scores,
            log_probs,
            ref_log_probs,
            mask,
            kl_coef=0.0 if choices.kl_in == "loss" else kl_coef,
            kl_estimator=config.kl_estimator,
            score_at=choices.score_at,
        )
        advantages, returns = credit(config, rewards, values, mask, value_mask)
        metrics = reply_metrics(rollout, log_probs, ref_log_probs, entropies, read.ended) | {
            "objective/scores": scores.mean(),
            "objective/raw_scores": raw_scores.mean(),
            "objective/non_score_reward": rewards.sum(1).mean() - scores.mean(),
            "objective/rlhf_reward": rewards.sum(1).mean(),
            "objective/kl_coef": kl_coef,
            "critic/vf_explained_var": explained_variance(values, returns, value_mask),
        }
        if config.ensemble:
            metrics["val/disagreement"] = scores_MxB.std(0).mean()
        made = Experience(rollout, log_probs, values, value_mask, rewards, advantages, returns)
        if choices.kl_in == "loss":
            price = kl_coef * jnp.ones_like(scores)
            made = replace(made, ref_log_probs=ref_log_probs, kl_coef=price)
        return made, metrics

    def experience(policy, critic, reference, reward, rollout: Rollout, kl_coef):
        # One program scores both: inside a larger one the compiler may fuse them differently, and the KL of
        # a policy to itself would not be exactly 0.
        ref_log_probs, _ = score(reference, rollout)
        return judge(*score(policy, rollout), ref_log_probs, critic, reward, rollout, kl_coef)

    return experience


def make_take(config):
    """Jitted `take(experience, rows)`: the rows of a minibatch, whitened anew where each is by itself."""

    @jax.jit
    def take(made: Experience, rows) -> Experience:
        part = jax.tree.map(lambda x: x[rows], made)
        if config.conventions.whiten_over == "rollout":
            return part
        advantages, returns = credit(
            config, part.rewards, part.old_values, part.rollout.mask, part.value_mask
        )
        return replace(part, advantages=advantages, returns=returns)

    return take


def aggregated(config, loss, mask, tokens, replies):
    """`loss(mask, denominator=...)` as `conventions.aggregate` says, and its metrics.

    What is watched is a mean over tokens, whatever a token counts in the loss. `tokens` and `replies` are
    those of the whole minibatch.
    """
    choices = config.conventions
    if choices.average_over == "micro_batch":
        tokens = mask.sum() * config.accumulate
    value, metrics = loss(mask, denominator=tokens)
    if choices.aggregate != "token_mean":
        value, _ = loss(token_weights(mask, choices.aggregate), denominator=replies)
    return value, metrics


def make_policy_loss(config, language):
    """Clipped surrogate plus `ptx_coef` times the language-model loss, additive over rows.

    With `conventions.kl_in = "loss"` the KL to the reference, times its coefficient, is a third term.
    """
    text_loss = make_language_loss(language)

    def loss_fn(params, batch, totals, key):
        e: Experience = batch["experience"]
        log_probs, _ = response_log_probs(language, params, e.rollout, config.sampling.temperature)
        counts = e.rollout.mask, totals["response"], totals["replies"]
        surrogate = partial(policy_loss, log_probs, e.old_log_probs, e.advantages, clip=config.clip)
        loss, metrics = aggregated(config, surrogate, *counts)
        metrics = metrics | {"loss/policy_avg": jax.lax.stop_gradient(loss)}
        if config.conventions.kl_in == "loss":
            divergence = partial(kl_loss, log_probs, e.ref_log_probs, estimator=config.kl_estimator)
            kl, kl_metrics = aggregated(config, divergence, *counts)
            loss, metrics = loss + e.kl_coef[0] * kl, metrics | kl_metrics
        if config.ptx_coef:
            ptx, ptx_metrics = text_loss(params, batch["text"], totals["text"], key)
            loss = loss + config.ptx_coef * ptx
            metrics = metrics | {"loss/ptx": ptx_metrics["loss"]}
        return loss, metrics

    return loss_fn


def make_value_loss(config, scalar):
    """Clipped squared error of the critic times `value_coef`, additive over rows."""

    def loss_fn(params, batch, totals, key):
        e: Experience = batch["experience"]
        values = response_values(scalar, params, e.rollout, e.value_mask)
        error = partial(value_loss, values, e.old_values, e.returns, clip=config.value_clip)
        loss, metrics = aggregated(config, error, e.value_mask, totals["values"], totals["replies"])
        return config.conventions.value_coef * loss, metrics | {"loss/value_avg": jax.lax.stop_gradient(loss)}

    return loss_fn


def count_totals(batch) -> dict[str, jax.Array]:
    """Response tokens, values, replies and text tokens of a minibatch, float32."""
    e: Experience = batch["experience"]
    totals = {"response": e.rollout.mask.sum(), "values": e.value_mask.sum()}
    totals["replies"] = jnp.float32(len(e.value_mask))
    return totals | ({"text": count_tokens(batch["text"])} if "text" in batch else {})
