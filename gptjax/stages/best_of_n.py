"""Rejection sampling: draw n replies to each prompt, keep the best, fine-tune on it (Touvron et al. 2023).

Best of n is the plainest optimiser of a reward, and the strongest at a small distance; fine-tuning on what it
chose puts it into the weights. Read top to bottom: configuration, drawing, what was kept, run.
Legend: N prompts asked, n replies to each, B prompts of a step, T response slots.
"""

import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from gptjax.config import configclass
from gptjax.data.chat import Messages
from gptjax.data.quality import DataError
from gptjax.errors import require
from gptjax.evaluation.best_of_n import best_of_n_kl, doublings, expected_best_of_n, select_best
from gptjax.generation.sampling import SamplingConfig, check_whole
from gptjax.losses.rewards import eos_penalty
from gptjax.ranges import Count, NonNegative, Seed, Weights
from gptjax.runs import mark_done, open_run, read_done, stage_done, write_jsonl_atomic
from gptjax.sharding.mesh import MeshConfig, check_batch, make_mesh, replicated, to_host
from gptjax.stages import finetune
from gptjax.stages.finetune import FinetuneConfig
from gptjax.stages.handover import TrainedModel, check_bases, load_model, save_model
from gptjax.stages.keys import stage_key
from gptjax.stages.many_replies import choose_prompts, make_replies, prompt_batches, text_lengths
from gptjax.stages.ppo_data import reply_lengths
from gptjax.stages.ppo_evaluation import make_comparison
from gptjax.training.loop import LoopSettings, run_loop
from gptjax.training.metrics import seconds_spent

BEST = "best"  # what stands for the chosen replies among the dialogues of fine-tuning


@configclass
class BestOfNConfig:
    """Fine-tuning on the best of n replies.

    Attributes:
        policy: run folder of the fine-tuned model that replies.
        reward: run folder of the reward model that chooses.
        prompts, prompt_length: as in PPO.
        sampling: how replies are drawn.
        n: replies to a prompt.
        asked: prompts that are answered; where there are fewer, some are asked again.
        batch_size: prompts answered at a time.
        missing_eos_penalty: what a reply that never ends loses; if it is the best all the same, its prompt is
            left out.
        finetune: the training; of its `dialogues` the name "best" stands for the chosen replies, and `base`
            and `seed` are filled in.
        corpora, text_length: text whose held-out part is measured at the end; the weights are not used.
        mesh: of the drawing; `finetune` has its own.
        eval_prompts, eval_bytes, save_every, seed: as in PPO.
    """

    policy: str = ""
    reward: str = ""
    prompts: str = "ratings"
    prompt_length: Count = 48
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=32)
    n: Count = 16
    asked: Count
    batch_size: Count = 8
    missing_eos_penalty: NonNegative = 1.0
    finetune: FinetuneConfig
    corpora: Weights = Field(default_factory=dict)
    text_length: Count = 128
    mesh: MeshConfig = MeshConfig()
    eval_prompts: Count = 256
    eval_bytes: Count = 40_000
    save_every: Count = 10
    seed: Seed = 0

    def __post_init__(self):
        check_batch(self.batch_size, self.mesh)
        if BEST not in self.finetune.dialogues:
            raise ValueError(f"finetune.dialogues must give '{BEST}', the chosen replies, a weight")
        if self.asked % self.batch_size:
            raise ValueError(
                f"batch_size = {self.batch_size} does not divide asked = {self.asked}: use a divisor of it"
            )
        check_whole(self.sampling, "best of n, whose divergence is of whole distributions")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Drawn:
    """What has been drawn so far.

    Attributes:
        step: int32 scalar, steps finished.
        tokens: int32 `[N, T]`, the best reply to each prompt, padded on the right.
        lengths: int32 `[N]`, its tokens without the end-of-message token; -1 where it never ended.
        scores: float32 `[N, n]`, of all replies.
    """

    step: jax.Array
    tokens: jax.Array
    lengths: jax.Array
    scores: jax.Array


def nothing_drawn(config: BestOfNConfig, mesh: jax.sharding.Mesh) -> Drawn:
    """The state before the first step, whole on every device."""
    N, T = config.asked, config.sampling.max_new_tokens
    whole = jnp.zeros((N, T), jnp.int32), jnp.full(N, -1, jnp.int32), jnp.zeros((N, config.n), jnp.float32)
    return jax.device_put(Drawn(jnp.zeros((), jnp.int32), *whole), replicated(mesh))


def make_drawing(config: BestOfNConfig, base: TrainedModel, reward: TrainedModel, mesh: jax.sharding.Mesh):
    """`step(state, prompts, key) -> (state, metrics)`: n replies to each of B prompts, the best kept."""
    n, replies = config.n, make_replies(base, {"reward": reward}, config.sampling, config.n)

    def step(state: Drawn, prompts, key):
        number, B = int(state.step), config.batch_size
        keys = jax.random.split(jax.random.fold_in(key, number), B * n)
        with jax.set_mesh(mesh):
            rollout, raw = replies(prompts, keys)
            ended, penalty = rollout.ended.reshape(B, n), config.missing_eos_penalty
            scores = eos_penalty(raw["reward"], ended, kind="subtract", penalty=penalty)
        best = np.arange(B) * n + select_best(to_host(scores))
        lengths = text_lengths(rollout)
        rows = slice(number * B, (number + 1) * B)
        metrics = {
            "best_of_n/mean": scores.mean(),
            "best_of_n/best": scores.max(1).mean(),
            "best_of_n/ended": rollout.ended.mean(),
            "val/response_length": rollout.mask.sum(1).mean(),
        }
        drawn = Drawn(
            state.step + 1,
            state.tokens.at[rows].set(rollout.response[best]),
            state.lengths.at[rows].set(lengths[best]),
            state.scores.at[rows].set(scores),
        )
        return drawn, metrics

    return step


def write_best(drawn: Drawn, asked: list[Messages], tokenizer, file: Path) -> int:
    """Writes the chosen replies as dialogues and returns how many; those without an end or text are left out.

    Raises:
        DataError: none is left.
    """
    rows = []
    tokens, lengths, scores = to_host((drawn.tokens, drawn.lengths, drawn.scores))
    for messages, ids, length, score in zip(asked, tokens, lengths, scores.max(1), strict=True):
        text = tokenizer.decode(ids[: max(length, 0)].tolist())
        if text.strip():
            said = {"role": "assistant", "content": text}
            rows.append({"messages": [*messages, said], "score": float(score)})
    print(f"best of n: {len(rows)} of {len(asked)} best replies kept, the others do not end or say nothing")
    if not rows:
        raise DataError("no best reply has an end: raise sampling.max_new_tokens or missing_eos_penalty")
    write_jsonl_atomic(file, rows)
    return len(rows)


def frontier(scores: np.ndarray) -> list[dict]:
    """Reward against divergence of the best of 1, 2, 4 ... n, estimated from all replies without bias."""
    return [
        {"n": n, "kl": best_of_n_kl(n), "reward": float(expected_best_of_n(scores, n).mean())}
        for n in doublings(scores.shape[1])
    ]


def check(config: BestOfNConfig) -> None:
    """Raises ConfigError for models that are not there, or do not fit the lengths or each other."""
    lengths = reply_lengths(config) | ({"text_length": config.text_length} if config.corpora else {})
    check_bases(lengths, {"policy": (config.policy, "language"), "reward": (config.reward, "scalar")})


def run(config: BestOfNConfig, folder: Path, may_change: Iterable[str] = ()) -> None:
    """Fine-tunes the policy on its best replies and leaves it in `folder`; the training is in `finetune/`.

    `may_change` names keys that may differ from an earlier start in this folder.
    """
    folder = open_run(folder, config, may_change=may_change)
    if stage_done(folder):
        print(f"best of n: already done in {folder}")
        return
    require("vaderSentiment")
    started, mesh = time.monotonic() - seconds_spent(folder), make_mesh(config.mesh)
    check(config)
    base, reward = load_model(config.policy, mesh, "language"), load_model(config.reward, mesh, "scalar")
    prompts = choose_prompts(config, base.tokenizer)
    batch_at = prompt_batches([ids for _, ids in prompts], config, base.tokenizer.pad_id, mesh)
    compare = make_comparison(config, base, reward, config.text_length)

    settings = LoopSettings(
        stage="best of n",
        folder=folder,
        steps=config.asked // config.batch_size,
        save_every=config.save_every,
        eval_every=0,
        identity={"tokenizer": base.tokenizer.hash, "policy": base.digest, "reward": reward.digest},
        tokens_per_step=config.batch_size * config.n * config.sampling.max_new_tokens,
        flops_per_token=None,  # nothing is trained here
        devices=config.mesh.size,
        started=started,
    )
    key = stage_key(config.seed, "best of n")
    drawn = run_loop(
        nothing_drawn(config, mesh), make_drawing(config, base, reward, mesh), batch_at, key, settings
    )
    kept = write_best(drawn, [messages for messages, _ in prompts], base.tokenizer, folder / "best.jsonl")

    sources = {
        str(folder / "best.jsonl") if s == BEST else s: w for s, w in config.finetune.dialogues.items()
    }
    training = dataclasses.replace(config.finetune, base=config.policy, dialogues=sources, seed=config.seed)
    # Where the runs lie is no setting: their folder may be moved, or be written in another way.
    finetune.run(training, folder / "finetune", may_change=("base", "dialogues"))
    tuned = load_model(folder / "finetune", mesh, "language")
    curve = frontier(to_host(drawn.scores))
    for point in curve:
        print(f"best of {point['n']}: reward {point['reward']:.3f} at {point['kl']:.2f} nats", flush=True)
    figures = compare(tuned.params, folder)
    save_model(folder, "language", tuned.definition.config, tuned.params, base.tokenizer)
    trained = read_done(folder / "finetune")
    summary = {"seconds": time.monotonic() - started, "tokens": trained["tokens"], "kept": kept}
    mark_done(folder, summary | {"heldout": figures | {"frontier": curve}})
