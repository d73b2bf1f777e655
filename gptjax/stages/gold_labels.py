"""Preferences of a synthetic labeler: a gold reward model ranks a policy's replies (Gao et al. 2022).

What people think cannot be asked again at every step of an optimisation; a reward model that plays their part
can. Reward models trained on its labels are proxies of it, and how far they can be trusted is measured.
Read top to bottom: configuration, drawing, labels, run.
Legend: N prompts asked, K replies to each, B prompts of a step, T response slots.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config import configclass
from gptjax.data.chat import Messages
from gptjax.data.quality import DataError
from gptjax.generation.sampling import SamplingConfig
from gptjax.ranges import Count, NonNegative, Seed
from gptjax.runs import mark_done, open_run, stage_done, write_jsonl_atomic
from gptjax.sharding.mesh import MeshConfig, check_batch, make_mesh, replicated, to_host
from gptjax.stages.handover import TrainedModel, check_bases, load_model
from gptjax.stages.keys import stage_key
from gptjax.stages.labels import labeler_liking
from gptjax.stages.many_replies import choose_prompts, make_replies, prompt_batches, text_lengths
from gptjax.stages.ppo_data import reply_lengths
from gptjax.training.loop import LoopSettings, run_loop
from gptjax.training.metrics import seconds_spent


@configclass
class GoldLabelsConfig:
    """Rankings of a policy's own replies.

    Attributes:
        policy: run folder of the fine-tuned model that replies.
        gold: run folder of the reward model that ranks.
        prompts, prompt_length: as in PPO.
        sampling: how replies are drawn.
        replies: to a prompt (K).
        asked: prompts that are answered; where there are fewer, some are asked again. Of two runs that differ
            in this alone, the labels of the smaller are the first of the larger.
        batch_size: prompts answered at a time.
        noise: temperature of the choices, in reward units; 0 ranks by the gold reward itself.
        mesh, save_every, seed: as elsewhere.
    """

    policy: str = ""
    gold: str = ""
    prompts: str = "ratings"
    prompt_length: Count = 48
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=32)
    replies: Count = 4
    asked: Count
    batch_size: Count = 16
    noise: NonNegative = 0.0
    mesh: MeshConfig = MeshConfig()
    save_every: Count = 20
    seed: Seed = 0

    def __post_init__(self):
        check_batch(self.batch_size, self.mesh)
        if self.replies < 2:
            raise ValueError("replies = 1: there is nothing to rank, draw 2 or more")
        if self.asked % self.batch_size:
            raise ValueError(
                f"batch_size = {self.batch_size} does not divide asked = {self.asked}: use a divisor of it"
            )
        if self.sampling.temperature == 0:
            raise ValueError("sampling must have a temperature above 0: greedy replies are all one")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Labelled:
    """What has been drawn and judged so far.

    Attributes:
        step: int32 scalar, steps finished.
        tokens: int32 `[N, K, T]`, padded on the right.
        lengths: int32 `[N, K]`, tokens without the end-of-message token; -1 where it never came.
        gold: float32 `[N, K]`, gold rewards.
        liking: float32 `[N, K]`, what the labeler ranks by.
    """

    step: jax.Array
    tokens: jax.Array
    lengths: jax.Array
    gold: jax.Array
    liking: jax.Array


def nothing_labelled(config: GoldLabelsConfig, mesh: jax.sharding.Mesh) -> Labelled:
    """The state before the first step, whole on every device."""
    each = config.asked, config.replies
    tokens = jnp.zeros((*each, config.sampling.max_new_tokens), jnp.int32)
    state = Labelled(jnp.int32(0), tokens, jnp.full(each, -1, jnp.int32), jnp.zeros(each), jnp.zeros(each))
    return jax.device_put(state, replicated(mesh))


def make_labelling(config: GoldLabelsConfig, base: TrainedModel, gold: TrainedModel, mesh: jax.sharding.Mesh):
    """`step(state, prompts, key) -> (state, metrics)`: K replies to each of B prompts, judged."""
    B, K = config.batch_size, config.replies
    replies = make_replies(base, {"gold": gold}, config.sampling, K)

    def step(state: Labelled, prompts, key):
        number = int(state.step)
        drawing, choosing = (
            jax.random.fold_in(jax.random.fold_in(key, purpose), number) for purpose in range(2)
        )
        with jax.set_mesh(mesh):
            rollout, scores = replies(prompts, jax.random.split(drawing, B * K))
        rewards = scores["gold"]
        rows = slice(number * B, (number + 1) * B)
        metrics = {
            "labels/gold": rewards.mean(),
            "labels/spread": rewards.std(1).mean(),
            "labels/ended": rollout.ended.mean(),
            "val/response_length": rollout.mask.sum(1).mean(),
        }
        labelled = Labelled(
            state.step + 1,
            state.tokens.at[rows].set(rollout.response.reshape(B, K, -1)),
            state.lengths.at[rows].set(text_lengths(rollout).reshape(B, K)),
            state.gold.at[rows].set(rewards),
            state.liking.at[rows].set(labeler_liking(rewards, config.noise, choosing)),
        )
        return labelled, metrics

    return step


def write_labels(labelled: Labelled, asked: list[Messages], tokenizer, file: Path) -> dict[str, int]:
    """Writes `prompt/completions/ranking` rows, rank 1 the best, equal numbers a tie; `gold` has the rewards.

    Replies without an end or text are left out, and prompts with fewer than two replies.

    Returns:
        "prompts", "replies" that were written, and "left_out", replies.

    Raises:
        DataError: no prompt is left.
    """
    rows, kept = [], 0
    arrays = to_host((labelled.tokens, labelled.lengths, labelled.gold, labelled.liking))
    for messages, tokens, lengths, gold, liking in zip(asked, *arrays, strict=True):
        texts = [
            tokenizer.decode(ids[: max(size, 0)].tolist()) for ids, size in zip(tokens, lengths, strict=True)
        ]
        chosen = [k for k, text in enumerate(texts) if text.strip()]
        if len(chosen) < 2:
            continue
        ranking = [1 + int((liking[chosen] > liking[k]).sum()) for k in chosen]
        row = {"prompt": messages, "completions": [texts[k] for k in chosen], "ranking": ranking}
        rows.append(row | {"gold": [float(gold[k]) for k in chosen]})
        kept += len(chosen)
    left_out = labelled.lengths.size - kept
    print(
        f"gold labels: {len(rows)} of {len(asked)} prompts with {kept} replies; {left_out} replies do not "
        "end, say nothing or have none beside them",
        flush=True,
    )
    if not rows:
        raise DataError("no prompt has two replies that end: raise sampling.max_new_tokens or replies")
    write_jsonl_atomic(file, rows)
    return {"prompts": len(rows), "replies": kept, "left_out": left_out}


def check(config: GoldLabelsConfig) -> None:
    """Raises ConfigError for models that are not there, or do not fit the lengths or each other."""
    bases = {"policy": (config.policy, "language"), "gold": (config.gold, "scalar")}
    check_bases(reply_lengths(config), bases)


def run(config: GoldLabelsConfig, folder: Path, may_change: Iterable[str] = ()) -> None:
    """Draws and ranks replies and leaves the rankings in `folder/preferences.jsonl`.

    `may_change` names keys that may differ from an earlier start in this folder.
    """
    folder = open_run(folder, config, may_change=may_change)
    if stage_done(folder):
        print(f"gold labels: already done in {folder}")
        return
    started, mesh = time.monotonic() - seconds_spent(folder), make_mesh(config.mesh)
    check(config)
    base, gold = load_model(config.policy, mesh, "language"), load_model(config.gold, mesh, "scalar")
    prompts = choose_prompts(config, base.tokenizer)
    settings = LoopSettings(
        stage="gold labels",
        folder=folder,
        steps=config.asked // config.batch_size,
        save_every=config.save_every,
        eval_every=0,
        identity={"tokenizer": base.tokenizer.hash, "policy": base.digest, "gold": gold.digest},
        tokens_per_step=config.batch_size * config.replies * config.sampling.max_new_tokens,
        flops_per_token=None,  # nothing is trained here
        devices=config.mesh.size,
        started=started,
    )
    labelled = run_loop(
        nothing_labelled(config, mesh),
        make_labelling(config, base, gold, mesh),
        prompt_batches([ids for _, ids in prompts], config, base.tokenizer.pad_id, mesh),
        stage_key(config.seed, "gold labels"),
        settings,
    )
    asked = [messages for messages, _ in prompts]
    counted = write_labels(labelled, asked, base.tokenizer, folder / "preferences.jsonl")
    tokens = int(np.maximum(to_host(labelled.lengths), 0).sum())
    mark_done(folder, {"seconds": time.monotonic() - started, "tokens": tokens, **counted})
