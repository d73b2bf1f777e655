"""Rows of packed dialogues and of plain text in one layout, which fine-tuning and PPO-ptx mix."""

from collections.abc import Iterable

import numpy as np

from gptjax.data.chat import Messages, read_dialogues, render_dialogue
from gptjax.data.corpora import read_documents
from gptjax.data.packing import lm_batch, pack_documents, pack_examples
from gptjax.data.quality import BadRows
from gptjax.data.ratings import demonstrations, load_ratings, split_ratings
from gptjax.data.rewording import reword
from gptjax.data.tokenizers import Tokenizer
from gptjax.stages.language_loss import PACKED, select

Rows = dict[str, np.ndarray]


def read_source(name: str, split: str, bad_rows: BadRows, seed: int) -> list[Messages]:
    """The dialogues of one source and split: "chatterbot", "ratings", or a path to JSONL."""
    if name == "ratings":
        train, heldout = split_ratings(load_ratings())
        return demonstrations(train if split == "train" else heldout, seed)
    return read_dialogues(name, split=split, bad_rows=bad_rows)


def encode_dialogues(dialogues: list[Messages], tokenizer: Tokenizer, length: int, name: str):
    """ChatML ids and loss masks; what goes beyond `length` + 1 ids is cut off, counted and shown.

    A dialogue whose first question leaves no room for an answer is a bad row.
    """
    bad_rows, examples, cut = BadRows(), [], 0
    for number, messages in enumerate(dialogues, 1):
        ids, mask = render_dialogue(messages, tokenizer)
        cut += len(ids) > length + 1
        ids, mask = ids[: length + 1], mask[: length + 1]
        if not any(mask):
            bad_rows.add("longer than the context", name, number)
            continue
        bad_rows.good()
        examples.append((ids, mask))
    bad_rows.check()
    print(f"{name}: {len(examples)} dialogues, {cut} cut to fit, {bad_rows.summary()}")
    return examples


def dialogue_rows(
    sources: Iterable[str],
    split: str,
    *,
    stage: str,
    tokenizer: Tokenizer,
    length: int,
    seed: int,
    rewordings: int = 0,
) -> dict[str, Rows]:
    """Source -> its dialogues packed into rows, those of people joined by `rewordings` noisy copies."""
    rows, bad_rows = {}, BadRows()
    for source in sources:
        dialogues = read_source(source, split, bad_rows, seed)
        if source != "ratings":
            dialogues = reword(dialogues, rewordings, seed)
        examples = encode_dialogues(dialogues, tokenizer, length, f"{stage}: {source} ({split})")
        rows[source] = select(pack_examples(examples, length + 1, tokenizer.pad_id), PACKED)
    return rows


def text_name(source: str) -> str:
    """The name of a source's plain text in a mixture, where its dialogues may have the source's own."""
    return f"text of {source}"


def text_rows(sources: Iterable[str], *, tokenizer: Tokenizer, length: int) -> dict[str, Rows]:
    """`text_name(source)` -> its training text in the layout of packed dialogues, one segment a row."""
    rows = {}
    for source in sources:
        ids = [tokenizer.encode(d.text) for d in read_documents(source, split="train")]
        packed = pack_documents(ids, length + 1, tokenizer.end_of_text_id)[0]
        rows[text_name(source)] = select(lm_batch(packed), PACKED)
    return rows
