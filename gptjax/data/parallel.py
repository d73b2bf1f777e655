"""Sentence pairs for translation: read, split, cut into token rows, batched by length.

Legend: B batch, L length of the longer side's bucket, N rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptjax.data.duplicates import clusters
from gptjax.data.files import held_out_keys, is_utf8, read_bytes, read_jsonl, source_files
from gptjax.data.mixture import Mixture
from gptjax.data.quality import BadRows, DataError, missing_of

HELD_OUT = 20  # one in twenty


@dataclass(frozen=True)
class SentencePair:
    """A sentence and its translation.

    Attributes:
        source, target: the two texts.
        document: what both come from; "" where the file does not say.
    """

    source: str
    target: str
    document: str = ""


@dataclass(frozen=True)
class PairSplit:
    """Pairs to learn from and pairs to measure on, and how many of the latter were too familiar."""

    train: list[SentencePair]
    heldout: list[SentencePair]
    familiar: int


def read_pairs(path: str | Path, source: str, target: str, bad_rows: BadRows) -> list[SentencePair]:
    """The sentence pairs of `.jsonl` and `.tsv` files, either with `.gz`, or of a folder of such.

    A JSONL row holds both texts under their names and, where known, the document's under `doc`; a TSV file
    names its columns in the first line. A pair whose sides are equal is untranslated, and a second copy of a
    pair says nothing new: both are left out, and counted as repeated.

    Args:
        path: of a file or a folder.
        source, target: names of the two languages' fields or columns, such as "zh" and "en".
        bad_rows: counts what is left out.

    Raises:
        DataError: there is no such file, or more than 0.1 % of the rows are bad.
    """
    own_rows, pairs = BadRows(), {}
    for file in source_files(path, (".jsonl", ".tsv")):
        read = read_jsonl if file.name.removesuffix(".gz").endswith(".jsonl") else read_tsv
        for line, row in read(file, own_rows):
            fault = fault_of_pair(row, source, target)
            if fault:
                own_rows.add(fault, file, line)
                continue
            own_rows.good()
            pair = SentencePair(row[source].strip(), row[target].strip(), str(row.get("doc", "")))
            if pair.source == pair.target or (pair.source, pair.target) in pairs:
                own_rows.repeat(1)
            else:
                pairs[pair.source, pair.target] = pair
    bad_rows.include(own_rows)
    own_rows.check()
    return list(pairs.values())


def read_tsv(file: Path, bad_rows: BadRows) -> Iterator[tuple[int, dict]]:
    """The rows of a tab-separated file, by the names in its first line, with their line numbers (from 1)."""
    lines = read_bytes(file).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    names = lines[0].decode("utf-8", "replace").strip("\r").split("\t")
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        try:
            cells = line.decode("utf-8").strip("\r").split("\t")
        except UnicodeDecodeError:
            bad_rows.add("not UTF-8", file, number)
            continue
        if len(cells) == len(names):
            yield number, dict(zip(names, cells, strict=True))
        else:
            bad_rows.add(f"malformed field: {len(cells)} cells for {len(names)} columns", file, number)


def fault_of_pair(row: dict, source: str, target: str) -> str:
    """The kind of the first fault of a row, "" when it is sound."""
    if missing := missing_of(row, (source, target)):
        return missing
    texts = row[source], row[target]
    if not all(isinstance(text, str) for text in texts):
        return f"malformed field: {source} and {target} must be texts"
    if not all(text.strip() for text in texts):
        return "empty text"
    return "" if all(is_utf8(text) for text in texts) else "not UTF-8"


def split_pairs(pairs: Sequence[SentencePair]) -> PairSplit:
    """Holds out whole documents, and of these the pairs that training has not seen in other words.

    One document in twenty is held out, by its sha256; where no document is named, one cluster of
    near-duplicate targets in twenty. A held-out pair is left out where its source or its target is a
    near-duplicate of one in training (`data/duplicates.py`).

    Raises:
        DataError: a side is empty.
    """
    sides = [side_clusters([pair.source for pair in pairs]), side_clusters([pair.target for pair in pairs])]
    groups = [pair.document or cluster for pair, cluster in zip(pairs, sides[1], strict=True)]
    held = held_out_keys(groups, HELD_OUT)
    train = [i for i, group in enumerate(groups) if group not in held]
    seen = [{side[i] for i in train} for side in sides]
    candidates = [i for i, group in enumerate(groups) if group in held]
    heldout = [
        i for i in candidates if not any(side[i] in met for side, met in zip(sides, seen, strict=True))
    ]
    if not train or not heldout:
        empty = "training" if not train else "held-out"
        raise DataError(
            f"no {empty} pair is left of {len(pairs)}: add pairs that are not near-duplicates of the others"
        )
    return PairSplit(
        [pairs[i] for i in train], [pairs[i] for i in heldout], familiar=len(candidates) - len(heldout)
    )


def side_clusters(texts: list[str]) -> list[str]:
    """The cluster of near-duplicates each text belongs to; case and outer spaces never tell two apart."""
    same = [" ".join(text.lower().split()) for text in texts]
    unique = sorted(set(same))
    found = dict(zip(unique, clusters(unique, unique), strict=True))
    return [found[text] for text in same]


def token_pairs(pairs: Sequence[SentencePair], tokenizer) -> list[tuple[list[int], list[int]]]:
    """Source and target ids of each pair, without special ids."""
    return [(tokenizer.encode(pair.source), tokenizer.encode(pair.target)) for pair in pairs]


def needed_length(ids: tuple[list[int], list[int]]) -> int:
    """Slots a pair needs: those of its source, or of its target and the end token."""
    return max(len(ids[0]), len(ids[1]) + 1)


def pair_rows(encoded: Sequence[tuple[list[int], list[int]]], length: int, end_id: int, pad_id: int = 0):
    """Pairs as padded rows with explicit masks; the decoder reads the target shifted right by one.

    Args:
        encoded: source and target ids, each pair of a `needed_length` of at most `length`.
        length: L.
        end_id: ends a target, and starts what the decoder reads.
        pad_id: fills the rest.

    Returns:
        {"sources", "source_mask", "tokens", "targets": int32 [N, L], "loss_mask": float32 [N, L]}.
    """
    N = len(encoded)
    sources, tokens, targets = (np.full((N, length), pad_id, np.int32) for _ in range(3))
    source_mask, loss_mask = np.zeros((N, length), np.int32), np.zeros((N, length), np.float32)
    for row, (source, target) in enumerate(encoded):
        sources[row, : len(source)], source_mask[row, : len(source)] = source, 1
        ends = len(target) + 1
        tokens[row, :ends], targets[row, :ends] = [end_id, *target], [*target, end_id]
        loss_mask[row, :ends] = 1.0
    return {
        "sources": sources,
        "source_mask": source_mask,
        "tokens": tokens,
        "targets": targets,
        "loss_mask": loss_mask,
    }


class PairBatches:
    """Batches of pairs of about one length, with about the same number of tokens each (section 5.1).

    A pair goes to the shortest bucket that holds it; a bucket of length L gives batches of `tokens // L`
    rows. In each cycle every bucket's pairs come about once, the buckets' batches in random order. Batch
    `step` depends on the constructor's arguments and on `step` alone.

    Attributes:
        mean_length: slots of a row, the mean over the batches of a cycle.
    """

    def __init__(self, encoded, lengths: Sequence[int], tokens: int, seed: int, end_id: int):
        """Sorts `encoded`, from `token_pairs`, into buckets of ascending `lengths`.

        Raises:
            DataError: a pair is longer than the last bucket, or there is none.
        """
        buckets: dict[int, list] = {length: [] for length in lengths}
        for ids in encoded:
            fitting = [length for length in lengths if needed_length(ids) <= length]
            if not fitting:
                raise DataError(
                    f"a pair needs {needed_length(ids)} tokens, but the longest bucket has {lengths[-1]}: "
                    "leave it out"
                )
            buckets[fitting[0]].append(ids)
        filled = {length: pairs for length, pairs in buckets.items() if pairs}
        if not filled:
            raise DataError("there is no sentence pair to train on: add shorter ones, or raise the lengths")
        self._mixtures = [
            Mixture({"pairs": pair_rows(pairs, length, end_id)}, {"pairs": 1.0}, tokens // length, seed + i)
            for i, (length, pairs) in enumerate(filled.items())
        ]
        counts = [-(-len(pairs) // (tokens // length)) for length, pairs in filled.items()]
        self._cycle, self._seed = np.repeat(np.arange(len(counts)), counts), seed
        self.mean_length = float(np.average(list(filled), weights=counts))

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        """The rows of batch `step`, as `pair_rows` gives them."""
        cycle, place = divmod(step, len(self._cycle))
        order = np.random.default_rng([self._seed, cycle]).permutation(self._cycle)
        bucket = order[place]
        # How often this bucket has had its turn before.
        turn = cycle * int((self._cycle == bucket).sum()) + int((order[:place] == bucket).sum())
        return self._mixtures[bucket].batch_at(turn)
