"""Human preferences: several replies to one prompt, scored so that more is better."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gptjax.data.chat import Messages, Origin, fault_of_messages, header, render_prompt
from gptjax.data.files import held_out_keys, is_utf8, read_jsonl, source_files
from gptjax.data.quality import BadRows, DataError, missing_of
from gptjax.data.tokenizers import Tokenizer, encode_on

HELD_OUT = 10  # one in ten
MOST = float(np.finfo(np.float32).max)
TOLD_BY = ("source", "labeler", "confidence")  # what accuracy is told by, where a row says it
ORDER = 1e-6  # the difference of scores of a pair without a margin to speak of: its order stands all the same


@dataclass(frozen=True)
class RankedReplies:
    """A prompt and its K replies.

    Attributes:
        prompt: messages, the last by the user.
        completions: K replies.
        scores: K numbers, more is better; equal numbers are a tie, which no loss may order.
        origin: file and line of the row; None for bundled ratings.
        source, labeler, confidence: where the prompt comes from, who ranked, and how sure they were; "" where
            that is not known.
        votes: K numbers of people behind the scores; empty where that is not known.
    """

    prompt: Messages
    completions: list[str]
    scores: list[float]
    origin: Origin | None = field(default=None, compare=False)
    source: str = field(default="", compare=False)
    labeler: str = field(default="", compare=False)
    confidence: str = field(default="", compare=False)
    votes: tuple[int, ...] = field(default=(), compare=False)


class RankedArrays(NamedTuple):
    """G prompts with K places each, L ids long.

    Attributes:
        tokens: [G, K, L] int32, ChatML prompt, completion and `<|im_end|>`, padded on the right.
        lengths: [G, K] int32, number of ids; 0 where there is no completion.
        scores: [G, K] float32, more is better; 0 where there is no completion.
        group: [G] int32, which of the groups that were encoded it is.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray
    group: np.ndarray


def read_preferences(path: str | Path, bad_rows: BadRows | None = None) -> list[RankedReplies]:
    """The preferences of JSONL files: `prompt/chosen/rejected` or `prompt/completions/ranking`.

    `prompt` is a string (one user message) or a list of messages that ends with the user's. `ranking` holds
    a number for each completion, LOWER is better (rank 1 beats rank 2) and equal numbers tie. A pair may have
    a `margin`, by how much the chosen reply is the better one, in the units of the human scores; 1 without.
    Texts under `source`, `labeler` and `confidence`, which may be a number, are kept, so that accuracy can be
    told by them. The counts of the files are added to `bad_rows`; the limit is on these files alone.

    Raises DataError when there is no such file and for more than 0.1 % bad rows.
    """
    groups, own_rows = [], BadRows()
    for file in source_files(path, (".jsonl",)):
        for line, row in read_jsonl(file, own_rows):
            kind = fault_of_preference(row)
            if kind:
                own_rows.add(kind, file, line)
            else:
                own_rows.good()
                groups.append(ranked_row(row, (str(file), line)))
    if bad_rows is not None:
        bad_rows.include(own_rows)
    own_rows.check()
    return groups


def split_preferences(groups: Sequence[RankedReplies]) -> tuple[list[RankedReplies], list[RankedReplies]]:
    """Training and held-out groups; held out are those whose prompt has sha256 0 mod 10.

    So no prompt is on both sides. Where there is one prompt only, the whole group is hashed in its place.
    Where the hashes leave a side empty, one prompt moves over; of a single group nothing is held out.
    """
    keys = [json.dumps(group.prompt) for group in groups]
    if len(set(keys)) == 1:
        keys = [json.dumps([group.completions, group.scores]) for group in groups]
    heldout = held_out_keys(keys, HELD_OUT)
    train, held = [], []
    for group, key in zip(groups, keys, strict=True):
        (held if key in heldout else train).append(group)
    return train, held


def ranked_row(row: dict, origin: Origin) -> RankedReplies:
    """The ranked replies of a sound row."""
    if "chosen" in row:
        completions, scores = [row["chosen"], row["rejected"]], [max(float(row.get("margin", 1)), ORDER), 0.0]
    else:
        completions, scores = row["completions"], [-float(rank) for rank in row["ranking"]]
    about = {name: row[name] for name in TOLD_BY if isinstance(row.get(name), str)}
    if type(row.get("confidence")) in (int, float):
        about["confidence"] = f"{row['confidence']:g}"
    return RankedReplies(messages_of(row["prompt"]), completions, scores, origin, **about)


def messages_of(prompt: str | Messages) -> Messages:
    """A prompt as messages."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def fault_of_preference(row: dict) -> str:
    """The first fault of a row, as `BadRows.add` takes it; "" when it is sound."""
    pair = "chosen" in row or "rejected" in row
    fields = ("prompt", "chosen", "rejected") if pair else ("prompt", "completions", "ranking")
    if missing := missing_of(row, fields):
        return missing
    prompt = messages_of(row["prompt"])
    kind = fault_of_messages(prompt)
    if kind:
        return kind
    if not prompt or prompt[-1]["role"] != "user":
        return "unknown role"
    completions = [row["chosen"], row["rejected"]] if pair else row["completions"]
    if not isinstance(completions, list) or not all(isinstance(text, str) for text in completions):
        what = "chosen and rejected must be texts" if pair else "completions must be a list of texts"
        return f"malformed field: {what}"
    if not all(text.strip() for text in completions):
        return "empty text"
    if not all(is_utf8(text) for text in completions):
        return "not UTF-8"
    return fault_of_margin(row) if pair else fault_of_ranking(row["ranking"], len(completions))


def fault_of_margin(row: dict) -> str:
    """The fault of a pair's margin, "" when it has none, or a number from 0 on that float32 can hold."""
    margin = row.get("margin", 1)
    sound = type(margin) in (int, float) and 0 <= margin <= MOST
    return "" if sound else f"malformed field: margin must be a number from 0 to {MOST:g}"


def fault_of_ranking(ranking, count: int) -> str:
    """The fault of a ranking, "" when each of `count` >= 2 completions has a number that float32 can hold."""
    numbers = isinstance(ranking, list) and all(
        type(rank) in (int, float) and abs(rank) <= MOST for rank in ranking
    )
    if not numbers:
        return f"malformed field: ranking must be a list of numbers from -{MOST:g} to {MOST:g}"
    if count < 2:
        return "malformed field: completions must be two or more"
    if len(ranking) != count:
        return f"malformed field: ranking has {len(ranking)} numbers for {count} texts"
    return ""


def encode_ranked(
    groups: Sequence[RankedReplies],
    tokenizer: Tokenizer,
    context_length: int,
    k_max: int,
    bad_rows: BadRows | None = None,
    source: str = "ranked replies",
    bundled: bool = False,
) -> RankedArrays:
    """Encodes G groups into arrays [G, k_max, context_length].

    A completion that doesn't fit the context with its prompt is left out and counted as a bad row at the
    origin of its group, else at `source`, line = number of the group from 1; a group with fewer than two
    completions left is left out.

    Raises DataError when a group has more than `k_max` completions and for more than 0.1 % bad rows; of
    `bundled` data, which nobody can mend, they are only counted.
    """
    bad_rows = BadRows() if bad_rows is None else bad_rows
    tokens = np.full((len(groups), k_max, context_length), tokenizer.pad_id, np.int32)
    lengths = np.zeros((len(groups), k_max), np.int32)
    scores = np.zeros((len(groups), k_max), np.float32)
    for g, group in enumerate(groups):
        file, line = group.origin or (source, g + 1)
        if len(group.completions) > k_max:
            count = len(group.completions)
            raise DataError(f"{file}:{line} has {count} completions: raise k_max, which is {k_max}")
        prompt = render_prompt(group.prompt, tokenizer)
        for k, completion in enumerate(group.completions):
            ids = [*prompt, *encode_on(tokenizer, completion), tokenizer.im_end_id]
            if len(ids) > context_length:
                bad_rows.add("longer than the context", file, line)
                continue
            bad_rows.good()
            tokens[g, k, : len(ids)], lengths[g, k], scores[g, k] = ids, len(ids), group.scores[k]
    if not bundled:
        bad_rows.check()
    kept = (lengths > 0).sum(axis=1) >= 2
    group = np.flatnonzero(kept).astype(np.int32)
    return RankedArrays(tokens[kept], lengths[kept], scores[kept], group)


def completion_starts(arrays: RankedArrays, tokenizer: Tokenizer) -> np.ndarray:
    """The place of each completion's first id: int32 [G, K]; 0 where there is no completion.

    A completion follows the last header of its row: text never gives the id that opens a header.
    """
    places = np.arange(arrays.tokens.shape[2], dtype=np.int32)
    opened = np.where(arrays.tokens == tokenizer.im_start_id, places, 0).max(2)
    starts = opened + len(header("assistant", tokenizer))
    return np.where(arrays.lengths > 0, starts, 0).astype(np.int32)


def swap_completions(
    arrays: RankedArrays, starts: np.ndarray, index: np.ndarray, pad_id: int
) -> RankedArrays:
    """Each prompt of a batch with the completions of the next one, the last with those of the first.

    Args:
        arrays: from `encode_ranked`.
        starts: from `completion_starts`.
        index: [B, G'] which prompts are in each batch.
        pad_id: fills the rows.

    Returns:
        rankings [B * G', K, L]; a completion that does not fit behind the other prompt is left out.
    """
    prompts, others = index.reshape(-1), np.roll(index, -1, axis=1).reshape(-1)
    tokens = np.full((len(prompts), *arrays.tokens.shape[1:]), pad_id, np.int32)
    lengths = np.zeros(tokens.shape[:2], np.int32)
    for row, (prompt, other) in enumerate(zip(prompts, others, strict=True)):
        first = starts[prompt].max()
        beginning = arrays.tokens[prompt, np.argmax(starts[prompt]), :first]
        for k in np.flatnonzero(arrays.lengths[other]):
            said = arrays.tokens[other, k, starts[other, k] : arrays.lengths[other, k]]
            if first + len(said) <= tokens.shape[2]:
                lengths[row, k] = first + len(said)
                tokens[row, k, : lengths[row, k]] = np.concatenate([beginning, said])
    return RankedArrays(tokens, lengths, arrays.scores[others], arrays.group[others])


def pack_ranked(
    arrays: RankedArrays, index: np.ndarray, length: int, rows: int | None = None, parts: int = 1
) -> dict[str, np.ndarray]:
    """The completions of some prompts packed into rows, and where each one ends.

    Completions share rows as segments that do not see each other, first-fit with the longest first. With
    `parts` the batch can be cut into `parts` micro-batches by taking every `parts`-th prompt and row:
    prompt i's completions lie in rows r with r = i (mod parts), and `end_row` counts within them.

    Args:
        arrays: from `encode_ranked`.
        index: [G'] which prompts, a multiple of `parts`.
        length: ids in a row.
        rows: rows in the batch, a multiple of `parts`; None takes as many as are needed.
        parts: micro-batches.

    Returns:
        tokens, segment_ids, positions [rows, length] int32; end_row, end_column [G', K] int32, the place of
        each completion's last id; scores [G', K] float32; valid [G', K] bool.

    Raises:
        ValueError: the completions do not fit into `rows`.
    """
    lengths = arrays.lengths[index]
    packed = [_first_fit(lengths[part::parts], length) for part in range(parts)]
    needed = parts * max(count for _, _, count in packed)
    rows = needed if rows is None else rows
    if rows < needed:
        raise ValueError(f"these completions need {needed} rows of {length} ids, but {rows} were given")
    batch = {name: np.zeros((rows, length), np.int32) for name in ("tokens", "segment_ids", "positions")}
    end_row, end_column = np.zeros(lengths.shape, np.int32), np.zeros(lengths.shape, np.int32)
    for part, (row, start, _) in enumerate(packed):
        own = lengths[part::parts]
        for g, k in zip(*np.nonzero(own), strict=True):
            size, first = own[g, k], start[g, k]
            place = (row[g, k] * parts + part, slice(first, first + size))
            batch["tokens"][place] = arrays.tokens[index[part + g * parts], k, :size]
            batch["segment_ids"][place] = 1 + g * own.shape[1] + k
            batch["positions"][place] = np.arange(size)
        end_row[part::parts], end_column[part::parts] = row, np.maximum(start + own - 1, 0)
    ends = {"end_row": end_row, "end_column": end_column}
    return batch | ends | {"scores": arrays.scores[index], "valid": lengths > 0}


def _first_fit(lengths: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Row and first column of each item `[G, K]`, and the number of rows; a length of 0 takes no room."""
    row, start = np.zeros(lengths.shape, np.int32), np.zeros(lengths.shape, np.int32)
    room = np.full(lengths.size, row_length)
    for flat in np.argsort(-lengths, axis=None, kind="stable"):
        place = np.unravel_index(flat, lengths.shape)
        if lengths[place]:
            row[place] = np.argmax(room >= lengths[place])
            start[place] = row_length - room[row[place]]
            room[row[place]] -= lengths[place]
    return row, start, int((room < row_length).sum())
