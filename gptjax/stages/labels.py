"""Who ranks the replies of a round: a reward model with noise, or people by way of a file.

Legend: G prompts, K replies to each, L length.
"""

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config import ConfigError, configclass
from gptjax.data.files import read_jsonl
from gptjax.data.preferences import (
    TOLD_BY,
    RankedArrays,
    RankedReplies,
    fault_of_preference,
    messages_of,
    ranked_row,
)
from gptjax.data.quality import BadRows, DataError
from gptjax.data.tokenizers import encode_on
from gptjax.errors import WAITING
from gptjax.evaluation.calibration import make_pairs
from gptjax.ranges import NonNegative, UpToHalf
from gptjax.runs import write_jsonl_atomic
from gptjax.stages.handover import TrainedModel
from gptjax.stages.reward import RewardConfig, score_all


@configclass
class LabelerConfig:
    """Who ranks the replies.

    Attributes:
        kind: "simulated", the reward model below with noise; "human", a file that people put into the
            round's folder.
        reward: run folder of a reward model apart from those that are trained here. It ranks, and without
            noise it judges the policies at the end; where people rank it may be left out.
        temperature: of two replies the better is put first with probability sigmoid(difference of rewards /
            temperature), as Bradley and Terry have it; 0 always puts it first.
        flip: probability with which a pair is put in the wrong order besides, whatever the replies: so many
            rankings are drawn at random.
    """

    kind: Literal["simulated", "human"] = "simulated"
    reward: str = ""
    temperature: NonNegative = 0.0
    flip: UpToHalf = 0.0

    def __post_init__(self):
        if self.kind == "human" and (self.temperature or self.flip):
            raise ValueError("temperature and flip are noise of a simulated labeler: people bring theirs")


def score_replies(
    model: TrainedModel, prompts: list[list[int]], replies: list[list[str]], settings: RewardConfig
) -> np.ndarray:
    """The rewards of replies as texts, float `[G, K]`; what is longer than a row is cut at its end.

    Args:
        model: a reward model.
        prompts: G lists of ids, from `render_prompt`.
        replies: K texts to each.
        settings: batch size, length and mesh.
    """
    tokenizer, shape = model.tokenizer, (len(replies), len(replies[0]))
    tokens = np.full((*shape, settings.length), tokenizer.pad_id, np.int32)
    lengths = np.zeros(shape, np.int32)
    for g, (prompt, texts) in enumerate(zip(prompts, replies, strict=True)):
        for k, text in enumerate(texts):
            ids = [*prompt, *encode_on(tokenizer, text)][: settings.length - 1] + [tokenizer.im_end_id]
            tokens[g, k, : len(ids)], lengths[g, k] = ids, len(ids)
    arrays = RankedArrays(tokens, lengths, np.zeros(shape, np.float32), np.arange(len(replies)))
    return score_all(model.definition, model.params, arrays, settings)


def labeler_liking(rewards: jax.Array, noise: float, key: jax.Array) -> jax.Array:
    """What a labeler ranks by: rewards, or with noise rewards plus Gumbel draws times it.

    Ranked by it, replies i and j come in this order with the probability of Bradley and Terry (1952),
    ``sigmoid((r_i - r_j) / noise)``, and whole rankings with that of Plackett and Luce (Yellott 1977).

    Args:
        rewards: float32, any shape.
        noise: temperature, reward units, not negative.
        key: of the draws.
    """
    return rewards + noise * jax.random.gumbel(key, rewards.shape) if noise else rewards


def rank(scores_GxK: np.ndarray, labeler: LabelerConfig, key: jax.Array) -> np.ndarray:
    """The ranks 1 to K that a simulated labeler gives; equal scores share one where there is no noise.

    A ranking is the order of `labeler_liking`. With probability `2 flip` it is a random order instead, in
    which a pair is wrong half the time.

    Args:
        scores_GxK: rewards, more is better.
        labeler: temperature and flip.
        key: of all draws.

    Returns:
        int `[G, K]`, lower is better.
    """
    choices, careless, order = jax.random.split(key, 3)
    scores = np.asarray(labeler_liking(jnp.asarray(scores_GxK), labeler.temperature, choices))
    if labeler.flip:
        at_random = np.asarray(jax.random.bernoulli(careless, 2 * labeler.flip, (len(scores), 1)))
        scores = np.where(at_random, np.asarray(jax.random.uniform(order, scores.shape)), scores)
    return 1 + (scores[:, None, :] > scores[:, :, None]).sum(2)


def contrary(labels: list[RankedReplies], rewards_GxK: np.ndarray) -> float:
    """The share of the ordered pairs that the rewards put the other way; nan without an ordered pair."""
    scores = np.array([label.scores for label in labels])
    difference = make_pairs(scores, np.ones(scores.shape, bool)).difference(rewards_GxK)
    return float(np.mean((difference < 0) + 0.5 * (difference == 0))) if len(difference) else float("nan")


def read_rows(file: Path) -> list[dict]:
    """The rows of a JSONL file that a run has written."""
    return [json.loads(line) for line in file.read_text("utf-8").split("\n") if line]


def labelled(
    labeler: LabelerConfig, samples: list[dict], scores_GxK: np.ndarray | None, key: jax.Array, folder: Path
) -> list[RankedReplies]:
    """A round's rankings: those of `labels.jsonl` in its folder, which a simulated labeler writes.

    Args:
        labeler: who ranks.
        samples: the round's rows.
        scores_GxK: the labeler's own; None where people rank without them.
        key: of the labeler's noise.
        folder: the round's.

    Raises:
        DataError: as `read_labels`.
        SystemExit: code 66 where people have not ranked the samples yet.
    """
    file = folder / "labels.jsonl"
    if not file.exists() and labeler.kind == "human":
        print(
            f"{folder.name} waits for its labels: add to every row of {folder / 'samples.jsonl'} the list "
            "`ranking`, a number for each of its completions, 1 for the best and equal numbers for a tie, "
            f"save the rows as {file}, and run the same command again",
            flush=True,
        )
        raise SystemExit(WAITING)
    if not file.exists():
        rows = zip(samples, rank(scores_GxK, labeler, key).tolist(), strict=True)
        write_jsonl_atomic(file, [row | {"ranking": ranks, "labeler": "simulated"} for row, ranks in rows])
    return read_labels(file, samples)


def write_union(folder: Path, rankings: list[RankedReplies]) -> None:
    """Writes the rankings of all rounds so far to `rankings.jsonl` in the round's folder.

    Raises:
        ConfigError: they are others than those that the round began with.
    """
    file, rows = folder / "rankings.jsonl", [preference_row(ranked) for ranked in rankings]
    if file.exists() and read_rows(file) != rows:
        raise ConfigError(
            f"the rankings have changed since {file} was written: put the labels back, or delete {folder} "
            "and the rounds after it to train on them anew"
        )
    write_jsonl_atomic(file, rows)


def preference_row(ranked: RankedReplies) -> dict:
    """A ranking as a row of JSONL that `read_preferences` reads."""
    row = {"prompt": ranked.prompt, "completions": ranked.completions, "ranking": [-s for s in ranked.scores]}
    return row | {name: text for name in TOLD_BY if (text := getattr(ranked, name))}


def read_labels(file: Path, samples: list[dict]) -> list[RankedReplies]:
    """The rankings of all samples, in the order of the samples, from JSONL preferences in any order.

    Args:
        file: rows `prompt/completions/ranking` or, of two replies, `prompt/chosen/rejected`; the replies of
            a row may stand in another order than in its sample.
        samples: rows with `prompt`, `completions`, all different, and `source`.

    Raises:
        DataError: naming file and line of rows that are no rankings, that rank what is no sample, or a sample
            again; or naming the samples that have no row.
    """
    bad_rows, found = BadRows(), {}
    waiting = defaultdict(list)
    for number, sample in enumerate(samples):
        waiting[_identity(sample["prompt"], sample["completions"])].append(number)
    for line, row in read_jsonl(file, bad_rows):
        kind = fault_of_preference(row)
        if kind:
            bad_rows.add(kind, file, line)
            continue
        bad_rows.good()
        label = ranked_row(row, (str(file), line))
        numbers = waiting[_identity(label.prompt, label.completions)]
        if not numbers:
            raise DataError(
                f"{file}:{line} ranks what is no sample of this round, or a sample that another row ranks: "
                "give every row of samples.jsonl one ranking, and leave prompt and completions as they are"
            )
        number = numbers.pop(0)
        score_of = dict(zip(label.completions, label.scores, strict=True))
        texts = samples[number]["completions"]
        about = {"completions": texts, "scores": [score_of[text] for text in texts]}
        found[number] = replace(label, source=samples[number]["source"], **about)
    bad_rows.check(limit=0.0)
    missing = [str(number + 1) for number in range(len(samples)) if number not in found]
    if missing:
        some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{file} has no ranking of {len(missing)} of {len(samples)} samples: add those of lines {some} "
            "of samples.jsonl"
        )
    return [found[number] for number in range(len(samples))]


def _identity(prompt, completions: list[str]) -> str:
    return json.dumps([messages_of(prompt), sorted(completions)], sort_keys=True)
