"""BERT's rows: two runs of sentences, some of their tokens hidden (Devlin et al. 2018, sections 3.1 and A.1).

The rules are those of the released `create_pretraining_data.py`. Each copy of the data draws its masks once.
N rows, L positions, P predictions of a row.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gptjax.config import configclass
from gptjax.data.quality import DataError
from gptjax.ranges import Count, Fraction

NEXT, RANDOM = 0, 1
# A sentence ends with its mark before white space, or in Chinese with its mark, or with a paragraph.
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n\s*\n|(?<=[。！？])")

Sentences = Sequence[Sequence[int]]


@configclass
class MaskingConfig:
    """How rows are made and hidden; the defaults are BERT's for rows of 128 tokens.

    Attributes:
        share: of a row's tokens that are predicted.
        max_predictions: P, the most of one row.
        short_share: of documents cut into rows of a random, shorter length.
        copies: passes over the documents, each with its own pairs and masks.
    """

    share: Fraction = 0.15
    max_predictions: Count = 20
    short_share: Fraction = 0.1
    copies: Count = 10


class Pair(NamedTuple):
    """Two segments, and NEXT where the second followed the first, else RANDOM."""

    first: list[int]
    second: list[int]
    label: int


def sentences(text: str) -> list[str]:
    """The sentences of a text, white space inside them made single spaces."""
    found = (" ".join(part.split()) for part in SENTENCE_END.split(text))
    return [sentence for sentence in found if sentence]


def sentence_pairs(
    documents: Sequence[Sentences], index: int, most: int, short_share: float, rng
) -> Iterator[Pair]:
    """Cuts one document into pairs of segments, half of them with a segment of another document.

    Sentences are gathered until they hold the wanted number of tokens: `most`, or for a share of the
    documents a number drawn from 2 to `most`. The first few of them, at least one, are the first segment. The
    second is the rest, or with probability 1/2, and always where there is no rest, sentences from a random
    place of another document; the rest is then used again.

    Args:
        documents: ids of the sentences of each; none is empty.
        index: the document to cut.
        most: tokens of both segments together, L - 3.
        short_share: see `MaskingConfig`.
        rng: numpy generator.
    """
    document, start = documents[index], 0
    wanted = int(rng.integers(2, most + 1)) if rng.random() < short_share else most
    while start < len(document):
        end, held = start, 0
        while end < len(document) and held < wanted:
            held += len(document[end])
            end += 1
        middle = start + 1 if end - start == 1 else int(rng.integers(start + 1, end))
        first, second, label = _joined(document[start:middle]), _joined(document[middle:end]), NEXT
        if not second or rng.random() < 0.5:
            second, label, end = random_segment(documents, index, wanted - len(first), rng), RANDOM, middle
        yield Pair(*truncated(first, second, most, rng), label)
        start = end


def random_segment(documents: Sequence[Sentences], index: int, wanted: int, rng) -> list[int]:
    """Sentences from a random one on, at least one and until they hold `wanted` tokens.

    They are of a document that is not `index`, if one of ten draws finds such.
    """
    for _ in range(10):
        other = int(rng.integers(len(documents)))
        if other != index:
            break
    segment: list[int] = []
    for sentence in documents[other][int(rng.integers(len(documents[other]))) :]:
        segment += sentence
        if len(segment) >= wanted:
            break
    return segment


def truncated(first: list[int], second: list[int], most: int, rng) -> tuple[list[int], list[int]]:
    """Shortens the longer of the two by a token at its front or back, at random, until both hold `most`."""
    spans = [[0, len(first)], [0, len(second)]]
    lengths = [len(first), len(second)]
    while sum(lengths) > most:
        longer = int(lengths[0] <= lengths[1])
        front = rng.random() < 0.5
        spans[longer][not front] += 1 if front else -1
        lengths[longer] -= 1
    return first[slice(*spans[0])], second[slice(*spans[1])]


def hide(
    tokens: np.ndarray, candidates: np.ndarray, mask_id: int, vocab_size: int, config: MaskingConfig, rng
) -> tuple[np.ndarray, np.ndarray]:
    """Hides `min(P, max(1, round(share * tokens)))` of the candidates.

    Of them 80 % become [MASK], 10 % a random id of the whole vocabulary, 10 % stay as they are.

    Args:
        tokens: int32 ids of a row without its padding.
        candidates: places that may be predicted: not those of [CLS] and [SEP].
        mask_id, vocab_size: of the tokenizer.
        config: share and P.
        rng: numpy generator.

    Returns:
        the tokens with some replaced, and the sorted places to predict.
    """
    count = min(config.max_predictions, max(1, round(config.share * len(tokens))))
    places = np.sort(rng.permutation(candidates)[:count])
    kind, hidden = rng.random(len(places)), tokens.copy()
    replacement = np.where(kind < 0.8, mask_id, rng.integers(0, vocab_size, len(places)))
    hidden[places] = np.where((kind >= 0.8) & (kind < 0.9), tokens[places], replacement)
    return hidden, places


def masked_rows(
    documents: Sequence[Sentences], tokenizer, length: int, config: MaskingConfig, seed: int
) -> dict[str, np.ndarray]:
    """The rows `[CLS] A [SEP] B [SEP]` of documents, hidden; the same arguments give the same rows.

    Args:
        documents: ids of the sentences of each; empty ones are left out.
        tokenizer: has cls_id, sep_id, mask_id, pad_id, vocab_size.
        length: L, 5 or more.
        config: see its class.
        seed: of all draws.

    Returns:
        int32 tokens, token_types (0 to the first [SEP], 1 after), segment_ids (1, padding 0) `[N, L]`; int32
        places, targets and float32 place_weights (0 where a row has fewer) `[N, P]`; int32 labels (NEXT or
        RANDOM) and float32 row_weights, all 1, `[N]`.

    Raises:
        DataError: there is no sentence, or a row is too short for two.
    """
    documents = [[s for s in document if len(s)] for document in documents]
    documents = [document for document in documents if document]
    if not documents or length < 5:
        raise DataError(
            f"no rows of {length} tokens come of {len(documents)} documents: add text, or raise length"
        )
    rng = np.random.default_rng(seed)
    pairs = [
        pair
        for _ in range(config.copies)
        for index in range(len(documents))
        for pair in sentence_pairs(documents, index, length - 3, config.short_share, rng)
    ]
    N, L, P = len(pairs), length, config.max_predictions
    rows = {
        "tokens": np.full((N, L), tokenizer.pad_id, np.int32),
        "token_types": np.zeros((N, L), np.int32),
        "segment_ids": np.zeros((N, L), np.int32),
        "places": np.zeros((N, P), np.int32),
        "targets": np.zeros((N, P), np.int32),
        "place_weights": np.zeros((N, P), np.float32),
        "labels": np.array([pair.label for pair in pairs], np.int32),
        "row_weights": np.ones(N, np.float32),
    }
    for row, (first, second, _) in enumerate(pairs):
        ids = [tokenizer.cls_id, *first, tokenizer.sep_id, *second, tokenizer.sep_id]
        tokens, middle, end = np.array(ids, np.int32), len(first) + 2, len(first) + len(second) + 3
        candidates = np.concatenate([np.arange(1, middle - 1), np.arange(middle, end - 1)])
        hidden, places = hide(tokens, candidates, tokenizer.mask_id, tokenizer.vocab_size, config, rng)
        rows["tokens"][row, :end] = hidden
        rows["token_types"][row, middle:end] = 1
        rows["segment_ids"][row, :end] = 1
        rows["places"][row, : len(places)] = places
        rows["targets"][row, : len(places)] = tokens[places]
        rows["place_weights"][row, : len(places)] = 1.0
    return rows


def _joined(parts: Sentences) -> list[int]:
    return [id for part in parts for id in part]
