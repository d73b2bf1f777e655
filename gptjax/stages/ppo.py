"""PPO and PPO-ptx: the assistant aligned with the learnt reward (Ouyang et al. 2022, sections 3.5, C.4).

One iteration: draw replies, score them, estimate advantages, update policy and critic in minibatches. With
`ptx_coef` the gradient of the language-model loss on pretraining text is added in the same step.
Read top to bottom: configuration, state, experience, updates, run.
Legend: B prompts of an iteration, T response slots, L tokens of a text row.
"""

import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from gptjax.config import configclass
from gptjax.errors import require
from gptjax.generation.sampling import SamplingConfig
from gptjax.losses.ppo import ratio_variance
from gptjax.losses.rewards import update_kl_coefficient
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.ranges import BelowOne, Count, Fraction, Natural, NonNegative, Positive, Seed, Weights
from gptjax.runs import mark_done, open_run, stage_done
from gptjax.sharding.mesh import MeshConfig, check_batch, make_mesh, place, replicated
from gptjax.stages.experience import (
    count_totals,
    make_experience,
    make_policy_loss,
    make_score,
    make_value_loss,
)
from gptjax.stages.handover import check_fit, load_model, save_model
from gptjax.stages.keys import stage_key
from gptjax.stages.ppo_data import ppo_lengths, prompt_rows, ptx_rows, read_prompts
from gptjax.stages.ppo_evaluation import evaluate_policies
from gptjax.stages.rollout import draw, reward_scores
from gptjax.stages.self_check import check_first_ratio, check_identities
from gptjax.stages.sharded import compile_step, create_state
from gptjax.training.loop import LoopSettings, run_loop
from gptjax.training.metrics import read_metrics, seconds_spent
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import TrainState, make_train_step


@configclass
class PpoConfig:
    """PPO on prompts.

    Attributes:
        policy: run folder of the fine-tuned model; also the frozen reference.
        reward: run folder of the reward model; the critic starts from it.
        prompts: "ratings" (instructions of the rated texts), or a path to JSONL with `messages`.
        sampling: how replies are drawn; top_k and top_p must be off, since the loss scores the whole
            distribution.
        prompt_length: longest prompt in tokens; longer ones are counted and left out.
        iterations, batch_size: rollouts; replies per rollout (B).
        epochs, minibatches: passes over a rollout and parts per pass.
        accumulate: micro-batches per minibatch.
        gamma, gae_lambda: discount and trace of the advantages.
        clip, value_clip: half-widths of the trusted intervals of ratio and value.
        kl_coef, kl_estimator: price of a nat of divergence from the reference, per token, and its estimate.
        kl_target, kl_horizon: with a target in nats the coefficient adapts (Ziegler et al. 2019).
        kl_limit: a rollout that is farther from the reference than this, in nats per reply, is not learnt
            from: where the policy has gone so far the reward model is no longer a guide. None has no limit.
        whiten_rewards: scale rewards to unit variance before the advantages.
        missing_eos, missing_eos_penalty: what happens to the score of a reply that never ends.
        ptx_coef: weight of the language-model gradient; 0 is plain PPO (InstructGPT: 27.8).
        ptx_rows, ptx_length: rows per minibatch, tokens per row.
        corpora: source -> weight of the text, as in pretraining; its held-out part is measured at the end.
        dialogues: source -> weight of dialogues among those rows, as in fine-tuning, so that what PPO's
            prompts never ask for is not forgotten; the weights are on the scale of `corpora`.
        rewordings: noisy copies of each of these dialogues, as in fine-tuning.
        ema_decay: of the averaged policy, which is what is kept; 0 keeps the last one.
        optimizer, value_optimizer, mesh, save_every, seed: as elsewhere.
        eval_prompts: held-out prompts answered at the end.
        eval_bytes: held-out text per source measured at the end.
    """

    policy: str = ""
    reward: str = ""
    prompts: str = "ratings"
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=32)
    prompt_length: Count = 48
    iterations: Count
    batch_size: Count
    epochs: Count = 1
    minibatches: Count = 4
    accumulate: Count = 1
    gamma: Fraction = 1.0
    gae_lambda: Fraction = 0.95
    clip: Positive = 0.2
    value_clip: Positive = 0.2
    kl_coef: NonNegative = 0.02
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    kl_target: Positive | None = None
    kl_horizon: Positive = 10_000.0
    kl_limit: Positive | None = None
    whiten_rewards: bool = False
    missing_eos: Literal["replace", "subtract"] = "subtract"
    missing_eos_penalty: NonNegative = 1.0
    ptx_coef: NonNegative = 0.0
    ptx_rows: Count = 8
    ptx_length: Count = 128
    corpora: Weights
    dialogues: Weights = Field(default_factory=dict)
    rewordings: Natural = 0
    ema_decay: BelowOne = 0.992
    optimizer: OptimizerConfig = OptimizerConfig()
    value_optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    save_every: Count = 10
    eval_prompts: Count = 256
    eval_bytes: Count = 40_000
    seed: Seed = 0

    def __post_init__(self):
        if self.batch_size % self.minibatches:
            raise ValueError(
                f"minibatches = {self.minibatches} does not divide batch_size = {self.batch_size}"
            )
        check_batch(self.batch_size // self.minibatches, self.mesh, self.accumulate)
        if self.sampling.top_k or self.sampling.top_p < 1 or self.sampling.temperature == 0:
            raise ValueError("sampling must have top_k 0, top_p 1 and a temperature above 0 in PPO")
        if self.ptx_coef and not self.corpora:
            raise ValueError("ptx_coef needs corpora: name the text whose loss is to be kept")
        if self.ptx_coef and self.ptx_rows % (self.accumulate * self.mesh.batch_shards):
            raise ValueError(f"ptx_rows = {self.ptx_rows} must be a multiple of accumulate x mesh parts")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PpoState:
    """Everything that a resumed run needs besides its configuration.

    Attributes:
        step: int32 scalar, iterations finished.
        policy, critic: train states.
        ema: averaged policy parameters.
        kl_coef: float32 scalar.
    """

    step: jax.Array
    policy: TrainState
    critic: TrainState
    ema: Any
    kl_coef: jax.Array


def minibatch_order(config: PpoConfig, iteration: int) -> np.ndarray:
    """Rows of every minibatch of an iteration: `[epochs * minibatches, batch_size / minibatches]`."""
    rng = np.random.default_rng([config.seed, iteration])
    orders = [rng.permutation(config.batch_size) for _ in range(config.epochs)]
    return np.concatenate(orders).reshape(config.epochs * config.minibatches, -1).astype(np.int32)


def make_iteration(config: PpoConfig, tokenizer, language, scalar, reference, reward, texts, mesh):
    """`iteration(state, prompts, key) -> (state, metrics)`: rollout, experience, all updates."""
    policy_optimizer, value_optimizer = make_optimizers(config, language, scalar)
    dtype = language.config.compute_dtype

    def request_keys(key, step):
        return jax.random.split(jax.random.fold_in(key, step), config.batch_size)

    def rollout_fn(params, prompts, key, step):
        keys, end, pad = request_keys(key, step), tokenizer.im_end_id, tokenizer.pad_id
        return draw(language, params, prompts["tokens"], prompts["mask"], keys, config.sampling, end, pad)

    def average(ema, params):
        decay = config.ema_decay
        return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, ema, params)

    rollout_step, score = jax.jit(rollout_fn), make_score(config, language)
    experience = make_experience(config, score, scalar)
    take = jax.jit(lambda tree, index: jax.tree.map(lambda x: x[index], tree))
    average = jax.jit(average, donate_argnums=0)
    policy_step = compile_step(
        make_train_step(
            make_policy_loss(config, language), count_totals, policy_optimizer, accumulate=config.accumulate
        ),
        mesh,
    )
    value_step = compile_step(
        make_train_step(
            make_value_loss(config, scalar), count_totals, value_optimizer, accumulate=config.accumulate
        ),
        mesh,
    )

    def iteration(state: PpoState, prompts, key):
        number = int(state.step)
        rollout_key, policy_key, value_key = (jax.random.fold_in(key, purpose) for purpose in range(3))
        with jax.set_mesh(mesh):
            rollout = rollout_step(state.policy.params, prompts, rollout_key, number)
            made, metrics = experience(
                state.policy.params, state.critic.params, reference, reward, rollout, state.kl_coef
            )
            if number == 0:
                keys = jnp.stack([request_keys(rollout_key, i) for i in (0, 1)])
                scores = jax.jit(reward_scores, static_argnums=0)(scalar, reward, rollout)
                metrics |= check_identities(
                    lambda *given: score(*given)[0],
                    state.policy.params,
                    reference,
                    rollout,
                    scores,
                    keys,
                    dtype,
                )
        policy, critic, ema, parts = state.policy, state.critic, state.ema, []
        if config.kl_limit is not None and float(metrics["objective/kl"]) > config.kl_limit:
            state = dataclasses.replace(state, step=state.step + 1, ema=average(ema, policy.params))
            return state, metrics | {"val/beyond_limit": 1.0}
        for index in minibatch_order(config, number):
            batch = {"experience": take(made, index)}
            text = {"text": place(texts(int(policy.step)), mesh)} if config.ptx_coef else {}
            policy, policy_metrics = policy_step(policy, batch | text, policy_key)
            critic, value_metrics = value_step(critic, batch, value_key)
            ema = average(ema, policy.params)
            value_metrics = {"val/gradient_norm": value_metrics.pop("gradient_norm")} | value_metrics
            skipped = jnp.maximum(policy_metrics["skipped"], value_metrics["skipped"])
            parts.append(value_metrics | policy_metrics | {"skipped": skipped})
            if number == 0 and len(parts) == 1:
                metrics |= check_first_ratio(policy_metrics, dtype)
        updates = {name: jnp.stack([part[name] for part in parts]).mean() for name in parts[0]}
        updates["skipped"] = jnp.stack([part["skipped"] for part in parts]).max()
        updates["val/ratio_var"] = ratio_variance(updates["val/ratio"], updates.pop("val/ratio_spread"))
        kl_coef = state.kl_coef
        if config.kl_target is not None:
            kl_coef = update_kl_coefficient(
                kl_coef, metrics["objective/kl"], config.kl_target, config.kl_horizon, config.batch_size
            )
        return PpoState(state.step + 1, policy, critic, ema, kl_coef), metrics | updates

    return iteration


def make_optimizers(config: PpoConfig, language, scalar):
    """The policy's and the critic's optimisers over all updates of the run."""
    updates = config.iterations * config.epochs * config.minibatches
    return (
        make_optimizer(config.optimizer, updates, language.axes),
        make_optimizer(config.value_optimizer, updates, scalar.axes),
    )


def run(config: PpoConfig, folder: Path, may_change: Iterable[str] = ()) -> None:
    """Aligns the policy with the reward model and leaves it in `folder`.

    `may_change` names keys that may differ from an earlier start in this folder.
    """
    folder = open_run(folder, config, may_change=may_change)
    if stage_done(folder):
        print(f"ppo: already done in {folder}")
        return
    require("vaderSentiment")
    started, mesh = time.monotonic() - seconds_spent(folder), make_mesh(config.mesh)
    base, reward = load_model(config.policy, mesh, "language"), load_model(config.reward, mesh, "scalar")
    check_fit(ppo_lengths(config), {config.policy: base, config.reward: reward})
    # Without dropout: with it the ratio of the first pass would not be 1.
    language = ModelDefinition(LanguageModel, dataclasses.replace(base.definition.config, dropout=0.0))
    tokenizer, scalar = base.tokenizer, reward.definition
    prompts = prompt_rows(read_prompts(config.prompts, "train", config.seed), tokenizer, config)
    texts = ptx_rows(config, tokenizer) if config.ptx_coef else None

    policy_optimizer, value_optimizer = make_optimizers(config, language, scalar)
    policy = create_state(language, policy_optimizer, mesh, params=base.params)
    state = PpoState(
        step=jnp.zeros((), jnp.int32),
        policy=policy,
        critic=create_state(scalar, value_optimizer, mesh, params=reward.params),
        ema=jax.tree.map(jnp.copy, policy.params),
        # Laid out as the updated one will be, or the programs that take it are compiled twice.
        kl_coef=jax.device_put(jnp.float32(config.kl_coef), replicated(mesh)),
    )
    iteration = make_iteration(config, tokenizer, language, scalar, base.params, reward.params, texts, mesh)

    def batch_at(number):
        return place(prompts(number), mesh)

    settings = LoopSettings(
        stage="ppo",
        folder=folder,
        steps=config.iterations,
        save_every=config.save_every,
        eval_every=0,
        identity={"tokenizer": tokenizer.hash, "policy": base.digest, "reward": reward.digest},
        tokens_per_step=config.batch_size * config.sampling.max_new_tokens,
        flops_per_token=None,  # most of the work is not training: sampling, and four models that read
        devices=config.mesh.size,
        started=started,
    )
    state = run_loop(state, iteration, batch_at, stage_key(config.seed, "ppo"), settings)

    final = state.ema if config.ema_decay else state.policy.params
    figures = evaluate_policies(config, base, reward, final, folder, config.ptx_length)
    save_model(folder, "language", language.config, final, tokenizer)
    seconds = time.monotonic() - started
    lengths = [row["val/response_length"] for row in read_metrics(folder / "metrics.jsonl")]
    tokens = round(sum(lengths) * config.batch_size)
    mark_done(folder, {"seconds": seconds, "tokens": tokens, "heldout": figures})
