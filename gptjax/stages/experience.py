"""What PPO learns from: experience made of rollouts, and the two losses on it.

`config` is the `PpoConfig` of the run. Legend: B prompts of an iteration, T response slots.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from gptjax.losses.masked import masked_mean, masked_whiten
from gptjax.losses.ppo import explained_variance, policy_loss, value_loss
from gptjax.losses.rewards import empty_responses, eos_penalty, generalized_advantages, token_rewards
from gptjax.stages.language_loss import count_tokens, make_language_loss
from gptjax.stages.rollout import Rollout, response_log_probs, response_values, reward_scores


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Experience:
    """A rollout and what the updates need of it; all float32 `[B, T]`, 0 outside the mask."""

    rollout: Rollout
    old_log_probs: jax.Array
    old_values: jax.Array
    advantages: jax.Array
    returns: jax.Array


def make_score(config, language):
    """Jitted `score(params, rollout)`: `response_log_probs` at the sampling temperature."""
    return jax.jit(partial(response_log_probs, language, temperature=config.sampling.temperature))


def make_experience(config, score, scalar):
    """`experience(policy, critic, reference, reward, rollout, kl_coef) -> (Experience, metrics)`."""

    @jax.jit
    def judge(log_probs, entropies, ref_log_probs, critic, reward, rollout: Rollout, kl_coef):
        mask = rollout.mask
        values = response_values(scalar, critic, rollout)
        raw_scores = reward_scores(scalar, reward, rollout)
        scores = eos_penalty(
            raw_scores, rollout.ended, kind=config.missing_eos, penalty=config.missing_eos_penalty
        )
        rewards = token_rewards(
            scores, log_probs, ref_log_probs, mask, kl_coef=kl_coef, kl_estimator=config.kl_estimator
        )
        shaped = masked_whiten(rewards, mask, shift_mean=False) if config.whiten_rewards else rewards
        advantages, returns = generalized_advantages(
            shaped, values, mask, gamma=config.gamma, gae_lambda=config.gae_lambda
        )
        kl_B = ((log_probs - ref_log_probs) * mask).sum(1)
        metrics = {
            "objective/kl": kl_B.mean(),
            "objective/entropy": (entropies * mask).sum(1).mean(),
            "objective/scores": scores.mean(),
            "objective/raw_scores": raw_scores.mean(),
            "objective/non_score_reward": rewards.sum(1).mean() - scores.mean(),
            "objective/rlhf_reward": rewards.sum(1).mean(),
            "objective/kl_coef": kl_coef,
            "policy/entropy_avg": masked_mean(entropies, mask),
            "val/num_eos_tokens": rollout.ended.sum().astype(jnp.float32),
            "val/response_length": mask.sum(1).mean(),
            "val/empty_responses": empty_responses(mask).astype(jnp.float32),
            "val/sampler_gap": jnp.abs((log_probs - rollout.sampler_log_probs) * mask).max(),
            "ppo/val/var_explained": explained_variance(values, returns, mask),
        }
        advantages = masked_whiten(advantages, mask) * mask
        return Experience(rollout, log_probs, values, advantages, returns), metrics

    def experience(policy, critic, reference, reward, rollout: Rollout, kl_coef):
        # One program scores both: inside a larger one the compiler may fuse them differently, and the KL of
        # a policy to itself would not be exactly 0.
        ref_log_probs, _ = score(reference, rollout)
        return judge(*score(policy, rollout), ref_log_probs, critic, reward, rollout, kl_coef)

    return experience


def make_policy_loss(config, language):
    """Clipped surrogate plus `ptx_coef` times the language-model loss, additive over rows."""
    text_loss = make_language_loss(language)

    def loss_fn(params, batch, totals, key):
        e: Experience = batch["experience"]
        log_probs, _ = response_log_probs(language, params, e.rollout, config.sampling.temperature)
        loss, metrics = policy_loss(
            log_probs,
            e.old_log_probs,
            e.advantages,
            e.rollout.mask,
            clip=config.clip,
            denominator=totals["response"],
        )
        if config.ptx_coef:
            ptx, ptx_metrics = text_loss(params, batch["text"], totals["text"], key)
            loss = loss + config.ptx_coef * ptx
            metrics = metrics | {"loss/ptx": ptx_metrics["loss"]}
        return loss, metrics

    return loss_fn


def make_value_loss(config, scalar):
    """Clipped squared error of the critic, additive over rows."""

    def loss_fn(params, batch, totals, key):
        e: Experience = batch["experience"]
        values = response_values(scalar, params, e.rollout)
        return value_loss(
            values,
            e.old_values,
            e.returns,
            e.rollout.mask,
            clip=config.value_clip,
            denominator=totals["response"],
        )

    return loss_fn


def count_totals(batch) -> dict[str, jax.Array]:
    """Response tokens and text tokens of a minibatch."""
    totals = {"response": batch["experience"].rollout.mask.sum()}
    return totals | ({"text": count_tokens(batch["text"])} if "text" in batch else {})
