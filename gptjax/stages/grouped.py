"""RLOO and GRPO: several replies to each prompt are each other's baseline, and there is no critic.

One iteration: draw K replies to each prompt, score them with a reward model or check their answers, turn the
scores into advantages within each group, update the policy in minibatches.
Read top to bottom: configuration, state, experience, updates, run.
Legend: B replies of an iteration, G = B / K prompts, T response slots.
"""

import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from gptjax.config import configclass
from gptjax.data.mixture import Mixture
from gptjax.errors import require
from gptjax.generation.decode import left_pad
from gptjax.generation.sampling import SamplingConfig, check_whole
from gptjax.losses.group_advantages import group_normalised_advantages, leave_one_out_advantages
from gptjax.losses.masked import token_weights
from gptjax.losses.ppo import policy_loss, ratio_variance
from gptjax.losses.rewards import eos_penalty
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.ranges import Count, NonNegative, Positive, Seed, Weights
from gptjax.runs import mark_done, open_run, stage_done
from gptjax.sharding.mesh import MeshConfig, check_batch, make_mesh, place
from gptjax.stages.experience import make_score, reply_metrics
from gptjax.stages.handover import check_bases, load_model, save_model
from gptjax.stages.keys import stage_key
from gptjax.stages.ppo_data import reply_lengths
from gptjax.stages.ppo_evaluation import make_comparison
from gptjax.stages.ppo_iteration import minibatch_order
from gptjax.stages.reply_rewards import make_right_share, make_scorer, read_questions
from gptjax.stages.rollout import Rollout, draw, response_log_probs
from gptjax.stages.self_check import SelfCheck, announce, check_summary
from gptjax.stages.sharded import bounded, compile_step, create_state, first_step
from gptjax.training.loop import LoopSettings, run_loop
from gptjax.training.metrics import read_metrics, seconds_spent
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import TrainState, make_train_step


@configclass
class GroupedConfig:
    """RLOO or GRPO on prompts.

    Attributes:
        policy: run folder of the fine-tuned model; also the frozen reference.
        reward: run folder of a reward model, or "answers": 1 for a reply that ends with the answer that the
            dialogue's own reply ends with ("#### 42"), else 0.
        prompts: as in PPO.
        estimator: "rloo" (leave-one-out baseline, the tokens of a reply summed), "grpo" (standardised in the
            group, the tokens of a reply averaged) or "dr_grpo" (centred in the group, summed).
        ratio: what the clip bounds: the probability ratio of each "token", or one of the "reply", as in TRL's
            RLOO; with "grpo" that is the geometric mean of its tokens' (GSPO, Zheng et al. 2025).
        group_size: replies to a prompt (K).
        kl_coef: what a reply pays for a nat of divergence from the reference: reward units, with "grpo"
            standard deviations of its group's scores.
        missing_eos_penalty: what a reply that never ends loses.
        sampling, prompt_length, iterations, batch_size, epochs, minibatches, accumulate, clip: as in PPO.
        corpora, text_length: with a reward model, text whose held-out part is measured at the end; the
            weights are not used.
        self_check, self_check_every: as in PPO.
        optimizer, mesh, save_every, eval_prompts, eval_bytes, seed: as in PPO.
    """

    policy: str = ""
    reward: str = ""
    prompts: str = "ratings"
    estimator: Literal["rloo", "grpo", "dr_grpo"] = "rloo"
    ratio: Literal["token", "reply"] = "token"
    group_size: Count = 4
    kl_coef: NonNegative = 0.02
    missing_eos_penalty: NonNegative = 1.0
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=32)
    prompt_length: Count = 48
    iterations: Count
    batch_size: Count
    epochs: Count = 1
    minibatches: Count = 1
    accumulate: Count = 1
    clip: Positive = 0.2
    corpora: Weights = Field(default_factory=dict)
    text_length: Count = 128
    self_check: bool = True
    self_check_every: Count = 10
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    save_every: Count = 10
    eval_prompts: Count = 256
    eval_bytes: Count = 40_000
    seed: Seed = 0

    def __post_init__(self):
        if self.group_size < 2:
            raise ValueError(f"group_size = {self.group_size}: a reply needs another one as its baseline")
        for name in ("minibatches", "group_size"):
            if self.batch_size % getattr(self, name):
                raise ValueError(
                    f"{name} = {getattr(self, name)} does not divide batch_size = {self.batch_size}: "
                    "use a divisor of it"
                )
        check_batch(self.batch_size // self.group_size, self.mesh)
        check_batch(self.batch_size // self.minibatches, self.mesh, self.accumulate)
        check_whole(self.sampling, "RLOO and GRPO")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GroupedState:
    """Everything that a resumed run needs besides its configuration.

    Attributes:
        step: int32 scalar, iterations finished.
        policy: train state.
    """

    step: jax.Array
    policy: TrainState


def advantages_of(config: GroupedConfig, scores_B: jax.Array, costs_B: jax.Array) -> jax.Array:
    """One advantage a reply, float32 `[B]`, of its score and what its divergence costs.

    A prompt's K replies are neighbours. GRPO standardises the scores alone: among replies of one score the
    costs are all there is, and standardised they would count as much as any score.
    """
    scores_GxK, costs_GxK = (x.reshape(-1, config.group_size) for x in (scores_B, costs_B))
    every = jnp.ones_like(scores_GxK)
    if config.estimator == "rloo":
        return leave_one_out_advantages(scores_GxK - costs_GxK, every).reshape(-1)
    scores = group_normalised_advantages(scores_GxK, every, scale=config.estimator == "grpo")
    return (scores - group_normalised_advantages(costs_GxK, every, scale=False)).reshape(-1)


def make_experience(config: GroupedConfig):
    """Jitted `(rollout, raw scores, log-probabilities, entropies, reference's) -> (batch, metrics)`."""

    @jax.jit
    def experience(rollout: Rollout, raw_scores, log_probs, entropies, ref_log_probs):
        mask = rollout.mask
        scores = eos_penalty(raw_scores, rollout.ended, kind="subtract", penalty=config.missing_eos_penalty)
        kl_B = ((log_probs - ref_log_probs) * mask).sum(1)
        costs = config.kl_coef * kl_B
        scores_GxK = scores.reshape(-1, config.group_size)
        metrics = reply_metrics(rollout, log_probs, ref_log_probs, entropies, rollout.ended) | {
            "objective/scores": scores.mean(),
            "objective/raw_scores": raw_scores.mean(),
            "objective/non_score_reward": -costs.mean(),
            "objective/rlhf_reward": (scores - costs).mean(),
            "val/equal_groups": (scores_GxK.max(1) == scores_GxK.min(1)).mean(),
        }
        aggregate = "seq_mean_token_mean" if config.estimator == "grpo" else "seq_mean_token_sum"
        weights = token_weights(mask, aggregate)
        batch = {"rollout": rollout, "old_log_probs": log_probs, "weights": weights}
        return batch | {"advantages": advantages_of(config, scores, costs)}, metrics

    return experience


def make_grouped_loss(config: GroupedConfig, language: ModelDefinition):
    """`loss(params, batch, totals, key)`: the clipped surrogate, additive over replies."""

    def loss_fn(params, batch, totals, key):
        log_probs, _ = response_log_probs(language, params, batch["rollout"], config.sampling.temperature)
        old, weights, advantages_Bx1 = batch["old_log_probs"], batch["weights"], batch["advantages"][:, None]
        given = log_probs, old, jnp.broadcast_to(advantages_Bx1, log_probs.shape)
        # What is watched is a mean over tokens, whatever a token counts in the loss, but for what is clipped.
        mask, tokens = batch["rollout"].mask, totals["tokens"]
        _, metrics = policy_loss(*given, mask, clip=config.clip, denominator=tokens)
        if config.ratio == "reply":
            whole = [jnp.sum(x * weights, axis=1, keepdims=True) for x in (log_probs, old)]
            given, weights = (*whole, advantages_Bx1), jnp.ones_like(advantages_Bx1)
        loss, of_loss = policy_loss(*given, weights, clip=config.clip, denominator=totals["replies"])
        clipped = (metrics if config.ratio == "token" else of_loss)["policy/clipfrac_avg"]
        return loss, metrics | {"loss/policy_avg": of_loss["loss/policy_avg"], "policy/clipfrac_avg": clipped}

    return loss_fn


def count_totals(batch) -> dict[str, jax.Array]:
    """Replies and their tokens in a minibatch, float32."""
    return {"replies": jnp.float32(len(batch["advantages"])), "tokens": batch["rollout"].mask.sum()}


def make_iteration(config: GroupedConfig, tokenizer, language, reference, score_replies, optimizer, mesh):
    """`iteration(state, prompts, key) -> (state, metrics)`: rollout, scores, advantages, all updates."""
    K = config.group_size

    def request_keys(key, step):
        return jax.random.split(jax.random.fold_in(key, step), config.batch_size)

    @jax.jit
    def rollout_step(params, prompts, key, step):
        tokens, mask = (jnp.repeat(prompts[name], K, axis=0) for name in ("tokens", "mask"))
        ends = tokenizer.im_end_id, tokenizer.pad_id
        return draw(language, params, tokens, mask, request_keys(key, step), config.sampling, *ends)

    score, experience = make_score(config, language), make_experience(config)
    check = SelfCheck(config, language, score)
    take = jax.jit(lambda tree, index: jax.tree.map(lambda x: x[index], tree))
    loss = make_grouped_loss(config, language)
    update = compile_step(make_train_step(loss, count_totals, optimizer, accumulate=config.accumulate), mesh)

    def iteration(state: GroupedState, prompts, key):
        number, policy = int(state.step), state.policy
        rollout_key, policy_key = (jax.random.fold_in(key, purpose) for purpose in range(2))
        with jax.set_mesh(mesh):
            rollout = rollout_step(policy.params, prompts, rollout_key, number)
            scores = score_replies(rollout, jnp.repeat(prompts["number"], K))
            # One program scores both: the KL of a policy to itself is exactly 0.
            ref_log_probs, _ = score(reference, rollout)
            made, metrics = experience(rollout, scores, *score(policy.params, rollout), ref_log_probs)
            floats = {"rewards": scores} | {name: made[name] for name in ("advantages", "old_log_probs")}
            keys = partial(request_keys, rollout_key)
            metrics |= check.of_rollout(policy.params, reference, rollout, floats, keys, number)
        parts = []
        for index in minibatch_order(config, number):
            policy, update_metrics = update(policy, take(made, index), policy_key)
            parts.append(update_metrics)
            bounded(parts)
            if len(parts) == 1:
                metrics |= check.of_update(update_metrics, number)
        updates = {name: jnp.stack([part[name] for part in parts]).mean() for name in parts[0]}
        updates["skipped"] = jnp.stack([part["skipped"] for part in parts]).max()
        updates["val/ratio_var"] = ratio_variance(updates["val/ratio"], updates.pop("val/ratio_spread"))
        return GroupedState(state.step + 1, policy), metrics | updates

    return iteration


def check(config: GroupedConfig) -> None:
    """Raises ConfigError for models that are not there, or do not fit the lengths or each other."""
    lengths = reply_lengths(config) | ({"text_length": config.text_length} if config.corpora else {})
    bases = {"policy": (config.policy, "language"), "reward": (config.reward, "scalar")}
    if config.reward == "answers":
        del bases["reward"]
    check_bases(lengths, bases)


def run(config: GroupedConfig, folder: Path, may_change: Iterable[str] = ()) -> None:
    """Aligns the policy and leaves it in `folder`.

    `may_change` names keys that may differ from an earlier start in this folder.
    """
    folder = open_run(folder, config, may_change=may_change)
    if stage_done(folder):
        print(f"grouped: already done in {folder}")
        return
    announce(config, "grouped")
    started, mesh = time.monotonic() - seconds_spent(folder), make_mesh(config.mesh)
    check(config)
    base = load_model(config.policy, mesh, "language")
    reward = None if config.reward == "answers" else load_model(config.reward, mesh, "scalar")
    if reward is None:
        compare = make_right_share(config, base)
    else:
        require("vaderSentiment")
        compare = make_comparison(config, base, reward, config.text_length)
    # Without dropout: with it the ratio of the first pass would not be 1.
    language = ModelDefinition(LanguageModel, dataclasses.replace(base.definition.config, dropout=0.0))
    questions = read_questions(config, "train", base.tokenizer)
    tokens, mask = left_pad(questions.ids, base.tokenizer.pad_id, config.prompt_length)
    rows = {"tokens": tokens, "mask": mask, "number": np.arange(len(tokens), dtype=np.int32)}
    mixture = Mixture(
        {"prompts": rows}, {"prompts": 1.0}, config.batch_size // config.group_size, config.seed
    )

    optimizer = make_optimizer(
        config.optimizer, config.iterations * config.epochs * config.minibatches, language.axes
    )
    policy = create_state(language, optimizer, mesh, params=base.params)
    state = GroupedState(first_step(mesh), policy)
    score_replies = make_scorer(reward, questions, base.tokenizer)
    iteration = make_iteration(config, base.tokenizer, language, base.params, score_replies, optimizer, mesh)
    identity = {"tokenizer": base.tokenizer.hash, "policy": base.digest}
    settings = LoopSettings(
        stage="grouped",
        folder=folder,
        steps=config.iterations,
        save_every=config.save_every,
        eval_every=0,
        identity=identity | ({"reward": reward.digest} if reward else {}),
        tokens_per_step=config.batch_size * config.sampling.max_new_tokens,
        flops_per_token=None,  # most of the work is not training: sampling, and models that read
        devices=config.mesh.size,
        started=started,
        updates=config.epochs * config.minibatches,
    )
    key = stage_key(config.seed, "grouped")
    state = run_loop(state, iteration, lambda number: place(mixture.batch_at(number), mesh), key, settings)

    figures = compare(state.policy.params, folder)
    save_model(folder, "language", language.config, state.policy.params, base.tokenizer)
    rows = read_metrics(folder / "metrics.jsonl")
    tokens = round(sum(row.get("val/response_length", 0.0) for row in rows) * config.batch_size)
    cost = {"seconds": time.monotonic() - started, "tokens": tokens}
    mark_done(folder, cost | {"heldout": figures} | check_summary(config, rows))
