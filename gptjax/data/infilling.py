"""Blank infilling: texts with blanks (Du et al. 2021, arXiv 2103.10360, section 2.1).

Part A is the text with each blank replaced by one mask token; Part B holds what stood there, blank after
blank in a random order, each from a start to an end token. A token of B has two positions: the index in A of
its blank's mask, so that nothing tells how long the blank is, and its own place in the blank, from 1. In A
the second is 0.

Legend: B batch, L positions of a row, n tokens of a text.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gptjax.data.packing import first_fit
from gptjax.data.tokenizers import Tokenizer

Blank = tuple[int, int]  # first token of a text that is left out, and the one after the last
Arrays = dict[str, np.ndarray]
SENTENCE_ENDS = (".", "!", "?", "。", "！", "？", "\n")
# Poisson(3) cut to 1 .. 39, as in the released code: a blank is never empty.
SPAN_LENGTHS = np.arange(1, 40)
SPAN_WEIGHTS = np.array([3.0**length / math.factorial(length) for length in SPAN_LENGTHS])
PLACEMENTS = 16


@dataclass(frozen=True)
class BlankIds:
    """The ids that mark blanks; they follow those of the tokenizer.

    Attributes:
        cls: [CLS], the first of Part A.
        token, sentence, document: the masks [MASK], [sMASK] and [gMASK].
        start, end: <sop> and <eop>, around a blank in Part B.
    """

    cls: int
    token: int
    sentence: int
    document: int
    start: int
    end: int

    @classmethod
    def after(cls, vocab_size: int) -> "BlankIds":
        """The six ids after a tokenizer's."""
        return cls(*range(vocab_size, vocab_size + RESERVED))


RESERVED = len(BlankIds.__dataclass_fields__)


def token_blanks(text: np.ndarray, rng, *, rate: float, most: int, separator_id: int) -> list[Blank]:
    """Spans of Poisson lengths until `rate` of the text is blank, never adjacent, inside documents.

    Args:
        text: int32 `[n]`.
        rng: numpy generator.
        rate: share of the tokens, 0.15 in the paper.
        most: blanks at most.
        separator_id: what stands between documents.

    Returns:
        blanks from left to right. Their places are uniform; one that would hold a separator in each of 16
        draws is left out.
    """
    lengths, wanted = [], max(1, int(rate * len(text)))
    while sum(lengths) < wanted and len(lengths) < most:
        drawn = int(rng.choice(SPAN_LENGTHS, p=SPAN_WEIGHTS / SPAN_WEIGHTS.sum()))
        lengths.append(min(drawn, len(text) - sum(lengths)))
    kept = len(text) - sum(lengths)
    while len(lengths) > kept + 1:  # a short text, whose spans would touch
        kept += lengths.pop()
    separators = np.flatnonzero(text == separator_id)
    for _ in range(PLACEMENTS):
        # Each span goes into a gap of its own between two kept tokens.
        gaps = np.sort(rng.choice(kept + 1, len(lengths), replace=False))
        starts = gaps + np.cumsum([0, *lengths[:-1]])
        blanks = [(int(s), int(s) + length) for s, length in zip(starts, lengths, strict=True)]
        inside = [b for b in blanks if not ((separators >= b[0]) & (separators < b[1])).any()]
        if len(inside) == len(blanks):
            break
    return inside


def sentence_blanks(
    text: np.ndarray, rng, *, rate: float, most: int, separator_id: int, ends: np.ndarray
) -> list[Blank]:
    """Whole sentences, drawn until `rate` of the text is blank; arguments as in `token_blanks`.

    Args:
        ends: bool `[V]`, the ids that end a sentence, from `sentence_ends`.
    """
    last = [i + 1 for i in range(len(text)) if ends[text[i]] or text[i] == separator_id]
    borders = [0, *last] if last and last[-1] == len(text) else [0, *last, len(text)]
    sentences = [
        (start, end - int(text[end - 1] == separator_id))
        for start, end in zip(borders[:-1], borders[1:], strict=True)
    ]
    sentences, chosen, count = [s for s in sentences if s[1] > s[0]], [], 0
    for index in rng.permutation(len(sentences)):
        if count >= rate * len(text) or len(chosen) == most:
            break
        chosen.append(sentences[index])
        count += sentences[index][1] - sentences[index][0]
    return sorted(chosen)


def document_blank(text: np.ndarray, rng, *, shortest: float) -> list[Blank]:
    """The end of the text, in length uniform between a share `shortest` (0.5 in the paper) and all of it."""
    least = min(len(text), max(1, math.ceil(shortest * len(text))))
    return [(len(text) - int(rng.integers(least, len(text) + 1)), len(text))]


def sentence_ends(tokenizer: Tokenizer) -> np.ndarray:
    """Whether each id ends a sentence: bool `[V]`."""
    texts = [
        tokenizer.token_bytes(id).decode("utf-8", "ignore").rstrip(" ") for id in range(tokenizer.vocab_size)
    ]
    return np.array([text.endswith(SENTENCE_ENDS) for text in texts])


def blank_example(
    text: Sequence[int],
    blanks: Sequence[Blank],
    order: Iterable[int],
    mask: int,
    ids: BlankIds,
    *,
    cls: bool = True,
) -> Arrays:
    """A text with blanks as one example.

    Args:
        text: ids.
        blanks: from left to right, not overlapping.
        order: in which they stand in Part B.
        mask: the mask token.
        ids: the other marks.
        cls: whether Part A begins with [CLS].

    Returns:
        tokens, targets `[l]` int32, positions `[l, 2]` int32, loss_mask `[l]` float32 (1 in Part B) and
        blanks `[l]` int32: the number of the blank whose token is predicted, from 1; 0 in Part A and where an
        end token is.
    """
    part_a, places, done = [ids.cls] if cls else [], [], 0
    for start, end in blanks:
        part_a += [*text[done:start], mask]
        places.append(len(part_a) - 1)
        done = end
    part_a += [*text[done:]]
    tokens, positions = list(part_a), [(i, 0) for i in range(len(part_a))]
    targets, numbers = [0] * len(part_a), [0] * len(part_a)
    for number in order:
        said = list(text[slice(*blanks[number])])
        tokens += [ids.start, *said]
        targets += [*said, ids.end]
        numbers += [number + 1] * len(said) + [0]
        positions += [(places[number], 1 + i) for i in range(len(said) + 1)]
    return {
        "tokens": np.array(tokens, np.int32),
        "targets": np.array(targets, np.int32),
        "positions": np.array(positions, np.int32),
        "loss_mask": (np.arange(len(tokens)) >= len(part_a)).astype(np.float32),
        "blanks": np.array(numbers, np.int32),
    }


def left_to_right_example(text: Sequence[int], blanks: Sequence[Blank], ids: BlankIds) -> Arrays:
    """The same blanks for a model that reads from the left: all of the text is one [gMASK].

    The loss counts what stands in the blanks; each token is predicted from the whole text before it.
    """
    example = blank_example(text, [(0, len(text))], [0], ids.document, ids)
    numbers = np.zeros(len(text) + 1, np.int32)
    for number, blank in enumerate(blanks, 1):
        numbers[slice(*blank)] = number
    example["blanks"] = np.concatenate([example["blanks"][: -len(numbers)], numbers])
    return example | {"loss_mask": (example["blanks"] > 0).astype(np.float32)}


def fill_blanks(part_a: Sequence[int], answers: Sequence[Sequence[int]], ids: BlankIds) -> list[int]:
    """The text of Part A with its masks, from left to right, replaced by the answers; without [CLS]."""
    masks, left = {ids.token, ids.sentence, ids.document}, iter(answers)
    text = [token for id in part_a for token in (next(left) if id in masks else [id])]
    return [int(token) for token in text if token != ids.cls]


@dataclass(frozen=True)
class Blanks:
    """How texts become rows.

    Attributes:
        ids: the marks.
        separator_id: what stands between documents in a text.
        ends: from `sentence_ends`.
        length: L.
        objectives: kind -> weight; kinds are "token" (spans), "sentence" and "document".
        rate: share of a text that is blank in the first two kinds.
        shortest_document: least share of it in the third.
    """

    ids: BlankIds
    separator_id: int
    ends: np.ndarray
    length: int
    objectives: dict[str, float]
    rate: float = 0.15
    shortest_document: float = 0.5

    @property
    def most(self) -> int:
        """Blanks of a text at most: spans are 3 tokens long on average, and there is room for spans of 2."""
        return most_blanks(self.text_length, self.rate)

    @property
    def text_length(self) -> int:
        """n, the longest text whose parts fit: [CLS], the tokens, and a mask and a start for each blank."""
        fitting = (
            n for n in range(self.length, 0, -1) if 1 + n + 2 * most_blanks(n, self.rate) <= self.length
        )
        return next(fitting, 0)

    def draw(self, text: np.ndarray, rng, kind: str) -> tuple[list[Blank], int]:
        """Blanks of one kind, and their mask token."""
        several = {"rate": self.rate, "most": self.most, "separator_id": self.separator_id}
        if kind == "token":
            return token_blanks(text, rng, **several), self.ids.token
        if kind == "sentence":
            return sentence_blanks(text, rng, **several, ends=self.ends), self.ids.sentence
        return document_blank(text, rng, shortest=self.shortest_document), self.ids.document

    def example(self, text: np.ndarray, rng) -> Arrays:
        """A text with blanks of a kind drawn by weight, as in `blank_example`."""
        weights = np.array(list(self.objectives.values()), float)
        kind = list(self.objectives)[rng.choice(len(weights), p=weights / weights.sum())]
        blanks, mask = self.draw(text, rng, kind)
        return blank_example(text, blanks, rng.permutation(len(blanks)), mask, self.ids)

    def batch(self, texts: np.ndarray, numbers: Iterable[int], seed: int) -> Arrays:
        """Rows of texts `[B, n]`, the blanks of each a function of the seed and of the row's number alone."""
        drawn = [
            self.example(text, np.random.default_rng((seed, number)))
            for text, number in zip(texts, numbers, strict=True)
        ]
        return stack_examples(drawn, self.length)

    def heldout(self, texts: np.ndarray, seed: int, kind: str = "token") -> tuple[Arrays, Arrays]:
        """Rows with blanks of one kind, and the same blanks for `left_to_right_example`."""
        both, from_left = [], []
        for number, text in enumerate(texts):
            rng = np.random.default_rng((seed, number))
            blanks, mask = self.draw(text, rng, kind)
            both.append(blank_example(text, blanks, rng.permutation(len(blanks)), mask, self.ids))
            from_left.append(left_to_right_example(text, blanks, self.ids))
        return stack_examples(both, self.length), stack_examples(from_left, self.length)


def most_blanks(length: int, rate: float) -> int:
    """How many blanks of 2 tokens it takes to leave out `rate` of a text."""
    return max(1, math.ceil(rate * length / 2))


def stack_examples(examples: Sequence[Arrays], length: int) -> Arrays:
    """Each example in a row of its own, `[B, L, ...]`; see `lay_out`."""
    return lay_out(examples, [(i, i, 0) for i in range(len(examples))], len(examples), length)


def pack_blanks(examples: Sequence[Arrays], length: int) -> Arrays:
    """Examples of at most L positions, several to a row where they fit, as in `pack_examples`."""
    sizes = np.array([len(example["tokens"]) for example in examples], np.int64)
    return lay_out(examples, *first_fit(sizes, length), length)


def lay_out(examples: Sequence[Arrays], placed: list[tuple[int, int, int]], rows: int, length: int) -> Arrays:
    """Rows `[rows, L, ...]` with examples at their places, from `first_fit`.

    Padding is 0 throughout; segment_ids `[rows, L]` int32 count from 1 in each row and are 0 in the padding.
    """
    shapes = {name: (array.shape[1:], array.dtype) for name, array in examples[0].items()}
    batch = {name: np.zeros((rows, length, *shape), dtype) for name, (shape, dtype) in shapes.items()}
    batch["segment_ids"], segments = np.zeros((rows, length), np.int32), np.zeros(rows, np.int32)
    for index, row, start in placed:
        place = (row, slice(start, start + len(examples[index]["tokens"])))
        segments[row] += 1
        batch["segment_ids"][place] = segments[row]
        for name, array in examples[index].items():
            batch[name][place] = array
    return batch
