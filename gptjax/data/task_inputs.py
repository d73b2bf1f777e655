"""Examples of a task as token sequences, in GPT-1's four forms (Radford et al. 2018, section 3.3) or BERT's.

| form           | sequences of an example                                          |
|----------------|------------------------------------------------------------------|
| classification | start text extract                                               |
| entailment     | start text delimiter second extract                              |
| similarity     | start text delimiter second extract, start second delimiter text extract |
| choice         | start text delimiter answer extract, for each answer             |

BERT has [CLS] for start, and [SEP] for both others (Devlin et al. 2018, section 4).
N examples, S sequences of an example, L positions.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gptjax.data.files import held_out_keys, read_jsonl, source_files
from gptjax.data.quality import BadRows, DataError, missing_of
from gptjax.data.ratings import RatedText, load_ratings, split_ratings

Form = Literal["classification", "entailment", "similarity", "choice"]
HELD_OUT = 10  # one in ten
# What a row of a file must have.
NEEDED: dict[str, set[str]] = {
    "classification": {"text", "label"},
    "entailment": {"text", "second", "label"},
    "similarity": {"text", "second", "label"},
    "choice": {"text", "answers", "label"},
}


@dataclass(frozen=True)
class Example:
    """A text, in some forms a second one or answers, and the number of its class or of the right answer."""

    text: str
    label: int
    second: str = ""
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Frame:
    """The ids around texts: start, delimiter, extract, padding; `types` counts the texts as BERT's."""

    start: int
    delimiter: int
    extract: int
    pad: int
    types: bool


def decoder_frame(tokenizer, vocab_size: int) -> Frame:
    """GPT-1's three tokens, new rows after the `vocab_size` of its embedding."""
    return Frame(vocab_size, vocab_size + 1, vocab_size + 2, tokenizer.pad_id, types=False)


def encoder_frame(tokenizer) -> Frame:
    """BERT's [CLS] and [SEP]."""
    return Frame(tokenizer.cls_id, tokenizer.sep_id, tokenizer.sep_id, tokenizer.pad_id, types=True)


def sequences(example: Example, form: Form) -> list[tuple[str, ...]]:
    """The texts of each sequence of an example."""
    if form == "classification":
        return [(example.text,)]
    if form == "choice":
        return [(example.text, answer) for answer in example.answers]
    pair = (example.text, example.second)
    return [pair] if form == "entailment" else [pair, pair[::-1]]


def framed(texts: Sequence[list[int]], frame: Frame, length: int) -> tuple[list[int], list[int], bool]:
    """One sequence of at most `length` ids: its ids, their token types, and whether texts were cut.

    The longer text loses its last token until both fit.
    """
    sizes, room = [len(text) for text in texts], length - len(texts) - 1
    while sum(sizes) > room:
        sizes[int(np.argmax(sizes))] -= 1
    ids, types = [frame.start], [0]
    for number, (text, size) in enumerate(zip(texts, sizes, strict=True)):
        last = number == len(texts) - 1
        ids += [*text[:size], frame.extract if last else frame.delimiter]
        types += [number * frame.types] * (size + 1)
    return ids, types, sum(sizes) < sum(map(len, texts))


def task_rows(
    examples: Sequence[Example], form: Form, tokenizer, frame: Frame, length: int
) -> tuple[dict[str, np.ndarray], int]:
    """The arrays of examples, and how many of them had to be cut.

    Returns:
        int32 tokens, token_types `[N, S, L]`, ends `[N, S]` (the place of each sequence's last token), labels
        `[N]`; float32 weights `[N]`, all 1.

    Raises:
        DataError: there is no example, they have different numbers of answers, or `length` is below 6.
    """
    texts = [sequences(example, form) for example in examples]
    counts = {len(sequence) for sequence in texts}
    if len(counts) != 1:
        raise DataError(
            f"the examples must have one number of sequences of the form {form}, but have {counts}"
        )
    N, S, L = len(texts), counts.pop(), length
    if L < 6:
        raise DataError(f"rows of {L} tokens are too short for two texts: raise length")
    rows = {name: np.zeros((N, S, L), np.int32) for name in ("tokens", "token_types")}
    rows["tokens"][:] = frame.pad
    rows["ends"] = np.zeros((N, S), np.int32)
    rows["labels"] = np.array([example.label for example in examples], np.int32)
    rows["weights"] = np.ones(N, np.float32)
    cut = 0
    for n, several in enumerate(texts):
        found = [framed([tokenizer.encode(text) for text in parts], frame, L) for parts in several]
        for s, (ids, types, _) in enumerate(found):
            rows["tokens"][n, s, : len(ids)], rows["token_types"][n, s, : len(ids)] = ids, types
            rows["ends"][n, s] = len(ids) - 1
        cut += any(was_cut for _, _, was_cut in found)
    return rows, cut


def read_examples(
    source: str, form: Form, clear: float, bad_rows: BadRows
) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples of "ratings", or of a JSONL file.

    The rated texts are positive (1) or negative (0) by the mean of their votes, at least `clear` from 0;
    texts nearer to it are left out. A file's rows have `text` and `label`, and `second` or `answers` where
    the form has them; one in ten is held out, by the hash of its text.

    Raises:
        DataError: the source can't be read, or either part is empty.
    """
    if source == "ratings":
        if form != "classification":
            raise DataError(
                f"the rated texts are single, which the form {form} is not: set form=classification"
            )
        train, heldout = (sentiments(part, clear) for part in split_ratings(load_ratings()))
        return train, heldout
    examples = [e for file in source_files(source, (".jsonl",)) for e in rows_of(file, form, bad_rows)]
    bad_rows.check()
    keys = held_out_keys([example.text for example in examples], HELD_OUT)
    train = [example for example in examples if example.text not in keys]
    heldout = [example for example in examples if example.text in keys]
    if not train or not heldout:
        raise DataError(f"{source} has {len(examples)} examples, too few to train and to measure: add some")
    return train, heldout


def sentiments(texts: Iterable[RatedText], clear: float) -> list[Example]:
    """Positive (1) and negative (0) texts whose mean vote is at least `clear` from 0."""
    return [Example(text.text, int(text.mean > 0)) for text in texts if abs(text.mean) >= clear]


def rows_of(file: Path, form: Form, bad_rows: BadRows) -> Iterator[Example]:
    """The examples of a JSONL file; rows that are none are counted."""
    for line, row in read_jsonl(file, bad_rows):
        if missing := missing_of(row, sorted(NEEDED[form])):
            bad_rows.add(missing, file, line)
        elif not well_formed(row, form):
            bad_rows.add("malformed field: texts must be text, label a number from 0", file, line)
        else:
            bad_rows.good()
            yield Example(row["text"], row["label"], row.get("second", ""), tuple(row.get("answers", ())))


def well_formed(row: dict, form: Form) -> bool:
    """Whether texts are strings, answers a list of them, of a choice at least two, and the label fits."""
    answers, label = row.get("answers", []), row["label"]
    if not isinstance(answers, list) or type(label) is not int or label < 0:
        return False
    texts = [row["text"], row.get("second", ""), *answers]
    return all(isinstance(t, str) for t in texts) and (form != "choice" or label < len(answers) > 1)
