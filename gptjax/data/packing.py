"""Documents and examples of any length, packed into rows of one length.

B rows of a batch, N rows, L positions. A stored row holds L + 1 ids, so that every position has a target.
"""

from collections.abc import Iterable, Sequence

import numpy as np


def pack_documents(
    documents: Iterable[Sequence[int]], row_length: int, separator_id: int
) -> tuple[np.ndarray, int]:
    """Joins documents, `separator_id` after each, and cuts the stream into rows.

    Rows overlap by one id, the last of a row being the first of the next: every id but the very first is a
    target once. (Brown et al. 2020, section 2.3: documents are packed whole rows long, with the end-of-text
    id between them and no mask.)

    Args:
        documents: the ids of each document.
        row_length: ids in a row, L + 1.
        separator_id: the end-of-text id.

    Returns:
        rows [N, row_length] int32, and the number of ids at the end that fill no row and are dropped.
    """
    parts = [np.append(np.asarray(ids, np.int32), np.int32(separator_id)) for ids in documents]
    stream = np.concatenate([np.zeros(0, np.int32), *parts])
    stride = row_length - 1
    count = max(0, (len(stream) - 1) // stride)
    starts = stride * np.arange(count)[:, None]
    return stream[starts + np.arange(row_length)], len(stream) - (count * stride + 1 if count else 0)


def lm_batch(rows: np.ndarray) -> dict[str, np.ndarray]:
    """The language-modelling batch of rows [B, L + 1]: every id is predicted from those before it.

    Returns tokens, targets, segment_ids, positions [B, L] int32 and loss_mask [B, L] float32. The segment
    is 0 throughout: attention crosses document borders, as in GPT-3.
    """
    tokens = rows[:, :-1].astype(np.int32)
    return {
        "tokens": tokens,
        "targets": rows[:, 1:].astype(np.int32),
        "loss_mask": np.ones(tokens.shape, np.float32),
        "segment_ids": np.zeros(tokens.shape, np.int32),
        "positions": np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape).copy(),
    }


def first_fit(sizes: np.ndarray, length: int) -> tuple[list[tuple[int, int, int]], int]:
    """Places examples in rows, the longest first, each in the first row with room.

    Args:
        sizes: positions of each example, at most `length`.
        length: of a row.

    Returns:
        (example, row, first position in the row) of each, and the number of rows.
    """
    room, placed = np.full(len(sizes), length, np.int64), []
    for index in np.argsort(-sizes, kind="stable"):
        row = int(np.argmax(room >= sizes[index]))
        placed.append((int(index), row, int(length - room[row])))
        room[row] -= sizes[index]
    return placed, int((room < length).sum())


def pack_examples(
    examples: Sequence[tuple[Sequence[int], Sequence[int]]], row_length: int, pad_id: int
) -> dict[str, np.ndarray]:
    """Packs examples whole, the longest first, each into the first row with room (first-fit decreasing).

    An example of n ids takes n - 1 positions: its ids but the last are tokens, its ids but the first are
    targets, and the mask of an id is the loss mask of the position that predicts it.

    Args:
        examples: ids and loss mask of each, equally long, 2 to `row_length` ids.
        row_length: L + 1, as in `pack_documents`.
        pad_id: the id of tokens and targets where there is no example.

    Returns:
        tokens, targets, segment_ids, positions [N, L] int32 and loss_mask [N, L] float32. Segments count
        from 1 in each row, 0 is padding; positions count from 0 in each segment.

    Raises:
        ValueError: an example has fewer than 2 or more than `row_length` ids, or a mask of another length.
    """
    length = row_length - 1
    for index, (ids, mask) in enumerate(examples):
        if not 2 <= len(ids) <= row_length or len(ids) != len(mask):
            raise ValueError(
                f"example {index} has {len(ids)} ids and {len(mask)} mask values: both must be equal and "
                f"between 2 and row_length = {row_length}"
            )
    sizes = np.array([len(ids) - 1 for ids, _ in examples], np.int64)
    segments = np.zeros(len(examples), np.int32)
    placed, rows = first_fit(sizes, length)
    batch = {
        "tokens": np.full((rows, length), pad_id, np.int32),
        "targets": np.full((rows, length), pad_id, np.int32),
        "loss_mask": np.zeros((rows, length), np.float32),
        "segment_ids": np.zeros((rows, length), np.int32),
        "positions": np.zeros((rows, length), np.int32),
    }
    for index, row, start in placed:
        ids, mask = examples[index]
        segments[row] += 1
        place = (row, slice(start, start + sizes[index]))
        batch["tokens"][place], batch["targets"][place] = ids[:-1], ids[1:]
        batch["loss_mask"][place] = mask[1:]
        batch["segment_ids"][place] = segments[row]
        batch["positions"][place] = np.arange(sizes[index])
    return batch
