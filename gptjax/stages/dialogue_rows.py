"""Rows of packed dialogues and of plain text in one layout, which fine-tuning and PPO-ptx mix."""

from collections.abc import Iterable

import numpy as np

from gptjax.data.chat import Messages, Origin, located_dialogues, render_dialogue
from gptjax.data.corpora import read_documents
from gptjax.data.packing import lm_batch, pack_documents, pack_examples
from gptjax.data.quality import BadRows
from gptjax.data.ratings import demonstrations, load_ratings, split_ratings
from gptjax.data.rewording import reword
from gptjax.data.tokenizers import Tokenizer
from gptjax.stages.language_loss import PACKED, select

Rows = dict[str, np.ndarray]
Example = tuple[list[int], list[int]]  # ids and loss mask


def read_source(name: str, split: str, bad_rows: BadRows, seed: int) -> list[tuple[Messages, Origin | None]]:
    """The dialogues of one source and split: "chatterbot", "ratings", or a path to JSONL.

    Those of a file come with its name and their line. Raises DataError as `read_dialogues` does.
    """
    if name == "ratings":
        train, heldout = split_ratings(load_ratings())
        return [
            (messages, None) for messages in demonstrations(heldout if split == "heldout" else train, seed)
        ]
    return located_dialogues(name, split=split, bad_rows=bad_rows)


def fit(ids: list[int], mask: list[int], length: int, cut_reply: bool) -> Example | None:
    """A rendered dialogue of at most `length` + 1 ids; None when it can't be had.

    What is longer ends after the last reply that fits whole. Where none does, `cut_reply` lets the first
    reply end at the row's end, as long as there is any of it.
    """
    if len(ids) <= length + 1:
        return ids, mask
    ends = [end for end in range(1, length + 2) if mask[end - 1] and not mask[end]]
    end = ends[-1] if ends else length + 1
    return (ids[:end], mask[:end]) if ends or (cut_reply and any(mask[:end])) else None


def encode_dialogues(
    dialogues: list[tuple[Messages, Origin | None]],
    tokenizer: Tokenizer,
    length: int,
    source: str,
    cut_long: bool = False,
) -> tuple[list[Example], list[Messages], str]:
    """ChatML ids and loss masks of the dialogues that fit into `length` + 1 ids, and these dialogues.

    A dialogue of a file of which no reply fits whole is a bad row; of a bundled one, which nobody can mend,
    the first reply is cut. With `cut_long` so it is of files, and what has no room for any of it is left out.

    Returns:
        examples, their dialogues, and a sentence that counts them, those that were cut and the bad rows.

    Raises:
        DataError: more than 0.1 % are longer than the context; the message names files and lines.
    """
    bad_rows, examples, kept, cut, left_out = BadRows(), [], [], 0, 0
    for number, (messages, origin) in enumerate(dialogues, 1):
        ids, mask = render_dialogue(messages, tokenizer)
        example = fit(ids, mask, length, cut_reply=cut_long or origin is None)
        if example is None and cut_long:
            left_out += 1
            continue
        if example is None:
            bad_rows.add("longer than the context", *(origin or (source, number)))
            continue
        bad_rows.good()
        examples.append(example)
        kept.append(messages)
        cut += sum(example[1]) < sum(mask)
    bad_rows.check()
    without = f"{left_out} left out without room for a reply, " if cut_long else ""
    return examples, kept, f"{len(examples)} dialogues, {cut} cut to fit, {without}{bad_rows.summary()}"


def encode_copies(
    dialogues: list[Messages], tokenizer: Tokenizer, length: int, copies: int, seed: int, cut_reply: bool
) -> tuple[list[Example], str]:
    """`copies` noisy versions of each dialogue, and a sentence that counts them.

    A version that does not fit is left out and counted; that is no fault of the data.
    """
    if not copies:
        return [], ""
    reworded = reword(dialogues, copies, seed)[len(dialogues) :]
    rendered = [render_dialogue(messages, tokenizer) for messages in reworded]
    examples = [
        example for ids, mask in rendered if (example := fit(ids, mask, length, cut_reply)) is not None
    ]
    left_out = len(reworded) - len(examples)
    return examples, f"; {len(examples)} noisy copies, {left_out} too long and left out"


def dialogue_rows(
    sources: Iterable[str],
    split: str,
    *,
    stage: str,
    tokenizer: Tokenizer,
    length: int,
    seed: int,
    rewordings: int = 0,
    cut_long: bool = False,
) -> dict[str, Rows]:
    """Source -> its dialogues packed into rows, those of people joined by `rewordings` noisy copies.

    `cut_long` is as in `encode_dialogues`.

    Prints a line per source: what was read, left out, cut and made.

    Raises:
        DataError: a source can't be read, lacks the split, or has more than 0.1 % bad rows.
    """
    rows = {}
    for source in sources:
        bad_rows = BadRows()
        dialogues = read_source(source, split, bad_rows, seed)
        examples, kept, counted = encode_dialogues(dialogues, tokenizer, length, source, cut_long)
        copies = 0 if source == "ratings" else rewordings
        bundled = cut_long or dialogues[0][1] is None
        more, made = encode_copies(kept, tokenizer, length, copies, seed, bundled)
        print(f"{stage}: {source} ({split}): {read_line(bad_rows)}{counted}{made}", flush=True)
        rows[source] = select(pack_examples(examples + more, length + 1, tokenizer.pad_id), PACKED)
    return rows


def read_line(bad_rows: BadRows) -> str:
    """What was left out while a source was read, with "; " after it; empty where no row was checked."""
    return f"read: {bad_rows.summary()}; " if bad_rows.good_rows + bad_rows.bad_rows else ""


def text_name(source: str) -> str:
    """The name of a source's plain text in a mixture, where its dialogues may have the source's own."""
    return f"text of {source}"


def text_rows(sources: Iterable[str], *, tokenizer: Tokenizer, length: int) -> dict[str, Rows]:
    """`text_name(source)` -> its training text in the layout of packed dialogues, one segment a row.

    Prints a line per source: what was read and what was left out.

    Raises:
        DataError: a source can't be read, has no training text, or has more than 0.1 % bad rows.
    """
    rows = {}
    for source in sources:
        name, bad_rows = text_name(source), BadRows()
        ids = [tokenizer.encode(d.text) for d in read_documents(source, split="train", bad_rows=bad_rows)]
        packed, dropped = pack_documents(ids, length + 1, tokenizer.end_of_text_id)
        counted = f"{len(ids)} documents, {dropped} tokens in the last partial row left out"
        print(f"{name}: {read_line(bad_rows)}{counted}", flush=True)
        rows[name] = select(lm_batch(packed), PACKED)
    return rows
