"""PPO and PPO-ptx: the assistant aligned with the learnt reward (Ouyang et al. 2022, sections 3.5, C.4).

One iteration (`ppo_iteration`): draw replies, score them, estimate advantages, update policy and critic in
minibatches. With `ptx_coef` the gradient of the language-model loss on pretraining text is added in the same
step. Read top to bottom: configuration, the critic's start, what an iteration needs, run.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from pydantic import Field

from gptjax.config import ConfigError, configclass
from gptjax.errors import require
from gptjax.generation.sampling import SamplingConfig, check_whole
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.models.lora import LoraConfig
from gptjax.ranges import BelowOne, Count, Fraction, Natural, NonNegative, Positive, Seed, Weights
from gptjax.runs import mark_done, open_run, stage_done
from gptjax.sharding.mesh import MeshConfig, check_batch, make_mesh, place, replicated
from gptjax.stages.adapters import merged, save_adapters
from gptjax.stages.conventions import PRESETS, Conventions
from gptjax.stages.handover import TrainedModel, check_bases, load_model, save_model
from gptjax.stages.judges import judge_folders, paying
from gptjax.stages.keys import stage_key
from gptjax.stages.ppo_data import ppo_lengths, prompt_rows, ptx_rows, read_prompts
from gptjax.stages.ppo_evaluation import compare_policies, make_evaluation
from gptjax.stages.ppo_iteration import PpoState, make_iteration, make_optimizers, trained_part
from gptjax.stages.self_check import announce, check_summary
from gptjax.stages.sharded import create_state, first_step
from gptjax.stages.tracking import TrackingConfig, tracked, with_tests
from gptjax.training.loop import LoopSettings, run_loop
from gptjax.training.metrics import read_metrics, seconds_spent
from gptjax.training.optimizers import OptimizerConfig


@configclass
class PpoConfig:
    """PPO on prompts.

    Attributes:
        policy: run folder of the fine-tuned model; also the frozen reference.
        reward: run folder of the reward model; the critic starts from it.
        ensemble: run folders of further reward models of its shape; a reply is paid the mean of all, less
            `disagreement_penalty` times their standard deviation.
        disagreement_penalty: reward units per unit of that deviation.
        prompts: "ratings" (instructions of the rated texts), or a path to JSONL with `messages`.
        sampling: how replies are drawn; top_k and top_p must be off, since the loss scores the whole
            distribution.
        prompt_length: longest prompt in tokens; longer ones are counted and left out.
        prompt_buckets: widths that prompts are padded to, see `prompt_widths`; each compiles every program.
        iterations, batch_size: rollouts; replies per rollout (B).
        epochs, minibatches: passes over a rollout and parts per pass.
        accumulate: micro-batches per minibatch.
        gamma, gae_lambda: discount and trace of the advantages.
        clip, value_clip: half-widths of the trusted intervals of ratio and value.
        kl_coef, kl_estimator: price of a nat of divergence from the reference, per token, and its estimate;
            paid where `conventions.kl_in` says.
        kl_target, kl_horizon: with a target in nats the coefficient adapts (Ziegler et al. 2019).
        kl_limit: a rollout that is farther from the reference than this, in nats per reply, is not learnt
            from: where the policy has gone so far the reward model is no longer a guide. None has no limit.
        whiten_rewards: scale rewards to unit variance before the advantages.
        missing_eos, missing_eos_penalty: what happens to the score of a reply that never ends.
        conventions: what implementations do differently; see its class, and its presets.
        ptx_coef: weight of the language-model gradient; 0 is plain PPO (InstructGPT: 27.8).
        ptx_rows, ptx_length: rows per minibatch, tokens per row.
        corpora: source -> weight of the text, as in pretraining; its held-out part is measured at the end.
        dialogues: source -> weight of dialogues among those rows, as in fine-tuning, so that what PPO's
            prompts never ask for is not forgotten; the weights are on the scale of `corpora`.
        rewordings: noisy copies of each of these dialogues, as in fine-tuning.
        ema_decay: of the averaged policy, which is what is kept; 0 keeps the last one.
        lora: train low-rank adapters of the policy alone, see `LoraConfig`; the reference is the same base
            without them, held once. None trains every parameter of a copy.
        self_check: stop where an identity does not hold that every correct run has.
        self_check_every: iterations between two checks; the first is always checked.
        optimizer, value_optimizer, mesh, save_every, seed: as elsewhere.
        eval_prompts: held-out prompts answered at the end.
        eval_bytes: held-out text per source measured at the end.
        tracking: what is measured along the way; None measures at the end only. By default it is what costs
            next to nothing, the loss on held-out text.
    """

    policy: str = ""
    reward: str = ""
    ensemble: tuple[str, ...] = ()
    disagreement_penalty: NonNegative = 0.0
    prompts: str = "ratings"
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=32)
    prompt_length: Count = 48
    prompt_buckets: Count = 1
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
    conventions: Conventions = Conventions()
    ptx_coef: NonNegative = 0.0
    ptx_rows: Count = 8
    ptx_length: Count = 128
    corpora: Weights
    dialogues: Weights = Field(default_factory=dict)
    rewordings: Natural = 0
    ema_decay: BelowOne = 0.992
    lora: LoraConfig | None = None
    self_check: bool = True
    self_check_every: Count = 10
    optimizer: OptimizerConfig = OptimizerConfig()
    value_optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    save_every: Count = 10
    eval_prompts: Count = 256
    eval_bytes: Count = 40_000
    tracking: TrackingConfig | None = TrackingConfig()
    seed: Seed = 0
    presets: ClassVar = PRESETS

    def __post_init__(self):
        if self.batch_size % self.minibatches:
            raise ValueError(
                f"minibatches = {self.minibatches} does not divide batch_size = {self.batch_size}: "
                "use a divisor of it"
            )
        check_batch(self.batch_size // self.minibatches, self.mesh, self.accumulate)
        check_whole(self.sampling, "PPO")
        if self.conventions.cut_after >= self.sampling.max_new_tokens:
            raise ValueError(
                f"conventions.cut_after = {self.conventions.cut_after} must be below "
                f"sampling.max_new_tokens = {self.sampling.max_new_tokens}, or every reply is rejected"
            )
        if self.conventions.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                "conventions.kl_in = 'loss' needs kl_estimator 'k2' or 'k3': the gradient of k1 averages to 0"
            )
        if self.kl_target is not None and not self.kl_coef:
            raise ValueError(
                "kl_target has no effect on kl_coef = 0, which it multiplies: give a first kl_coef"
            )
        if self.disagreement_penalty and not self.ensemble:
            raise ValueError("disagreement_penalty needs ensemble: name the reward models that may disagree")
        if self.ptx_coef and not self.corpora:
            raise ValueError("ptx_coef needs corpora: name the text whose loss is to be kept")
        if self.ptx_coef and self.ptx_rows % (self.accumulate * self.mesh.batch_shards):
            raise ValueError(f"ptx_rows = {self.ptx_rows} must be a multiple of accumulate x mesh parts")


def check(config: PpoConfig) -> None:
    """Raises ConfigError for models that are not there, or do not fit the lengths or each other."""
    bases = {"policy": (config.policy, "language"), "reward": (config.reward, "scalar")}
    bases |= {f"ensemble[{i}]": (folder, "scalar") for i, folder in enumerate(config.ensemble)}
    if config.tracking and config.tracking.gold:
        bases["tracking.gold"] = (config.tracking.gold, "scalar")
    check_bases(ppo_lengths(config), bases)


def initial_critic(config: PpoConfig, base: TrainedModel, reward: TrainedModel):
    """The critic's first parameters, as `conventions.critic_from` says.

    Raises:
        ConfigError: the policy's trunk has another shape than the critic.
    """
    if config.conventions.critic_from == "reward":
        return reward.params
    start = jax.tree.map(jnp.zeros_like, reward.params) | {"decoder": base.params["decoder"]}
    shapes = [jax.tree.map(jnp.shape, params) for params in (start, reward.params)]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            "conventions.critic_from = 'policy' needs a reward model of the policy's shape, but "
            f"{config.policy} and {config.reward} differ: leave it at 'reward'"
        )
    return start


@dataclass(frozen=True)
class Prepared:
    """What the iterations of a run need, made of its configuration alone.

    Attributes:
        base: the policy that was handed over, which is the reference.
        judges: the names of `judge_folders` -> reward model.
        language: the policy's definition.
        start: the state before the first iteration.
        iteration, batch_at, key: see `run_loop`.
        identity: of the run's checkpoints.
    """

    base: TrainedModel
    judges: dict[str, TrainedModel]
    language: ModelDefinition
    start: PpoState
    iteration: Callable
    batch_at: Callable
    key: jax.Array
    identity: dict[str, str]


def prepare(config: PpoConfig, mesh: jax.sharding.Mesh) -> Prepared:
    """Models, prompts, text, start and iteration of a run."""
    check(config)
    base, folders = load_model(config.policy, mesh, "language"), judge_folders(config)
    judges = {name: load_model(folders[name], mesh, "scalar") for name in folders}
    reward, digests = judges["reward"], {name: judge.digest for name, judge in judges.items()}
    # Without dropout: with it the ratio of the first pass would not be 1.
    language = ModelDefinition(LanguageModel, dataclasses.replace(base.definition.config, dropout=0.0))
    trained, tokenizer, scalar = trained_part(config, language), base.tokenizer, reward.definition
    prompts = prompt_rows(read_prompts(config.prompts, "train", config.seed), tokenizer, config)
    texts = ptx_rows(config, tokenizer) if config.ptx_coef else None

    policy_optimizer, value_optimizer = make_optimizers(config, trained, scalar)
    if config.lora is None:
        policy = create_state(language, policy_optimizer, mesh, params=base.params)
    else:
        counts = f"{trained.parameter_count:,} of {language.parameter_count:,}"
        print(f"ppo: adapters are trained, {counts} parameters; the base is the reference", flush=True)
        policy = create_state(trained, policy_optimizer, mesh, key=stage_key(config.seed, "lora"))
    start = PpoState(
        step=first_step(mesh),
        policy=policy,
        critic=create_state(scalar, value_optimizer, mesh, params=initial_critic(config, base, reward)),
        ema=jax.tree.map(jnp.copy, policy.params),
        # Laid out as the updated one will be, or the programs that take it are compiled twice.
        kl_coef=jax.device_put(jnp.float32(config.kl_coef), replicated(mesh)),
    )
    return Prepared(
        base,
        judges,
        language,
        start,
        make_iteration(config, tokenizer, language, scalar, base.params, paying(config, judges), texts, mesh),
        lambda number: place(prompts(number), mesh),
        stage_key(config.seed, "ppo"),
        {"tokenizer": tokenizer.hash, "policy": base.digest, **digests},
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
    announce(config, "ppo")
    started, mesh = time.monotonic() - seconds_spent(folder), make_mesh(config.mesh)
    ready = prepare(config, mesh)
    base = ready.base
    evaluation = make_evaluation(config, base, ready.judges, config.ptx_length, config.conventions)
    if config.tracking is not None:
        evaluation = with_tests(evaluation, base, config.tracking)
    settings = LoopSettings(
        stage="ppo",
        folder=folder,
        steps=config.iterations,
        save_every=config.save_every,
        eval_every=config.tracking.every if config.tracking else 0,
        identity=ready.identity,
        tokens_per_step=config.batch_size * config.sampling.max_new_tokens,
        flops_per_token=None,  # most of the work is not training: sampling, and four models that read
        devices=config.mesh.size,
        started=started,
        updates=config.epochs * config.minibatches,
    )

    def learnt(state: PpoState):
        return state.ema if config.ema_decay else state.policy.params

    def kept(state: PpoState):
        return learnt(state) if config.lora is None else merged(base.params, learnt(state), config.lora)

    def measure(state: PpoState):
        return tracked(evaluation, kept(state), config.tracking)

    state = run_loop(ready.start, ready.iteration, ready.batch_at, ready.key, settings, measure)

    if config.lora is not None:
        save_adapters(folder, config.lora, learnt(state), base)
    final = kept(state)
    figures = compare_policies(evaluation, base, final, folder)
    save_model(folder, "language", ready.language.config, final, base.tokenizer)
    seconds, rows = time.monotonic() - started, read_metrics(folder / "metrics.jsonl")
    tokens = round(sum(row.get("val/response_length", 0.0) for row in rows) * config.batch_size)
    cost = {"seconds": seconds, "tokens": tokens}
    mark_done(folder, cost | {"heldout": figures} | check_summary(config, rows))
