"""Held-out language-model loss and bits per byte.

Legend: B batch, L length, N rows.
"""

import bz2
import lzma
import math

import numpy as np

from gptjax.data.tokenizers import text_start_id
from gptjax.evaluation.batches import whole_batches


def heldout_rows(texts: list[str], tokenizer, length: int) -> dict[str, np.ndarray]:
    """All tokens of the texts in rows, each predicted exactly once.

    Every text follows an end-of-text token, or the token that begins texts where the tokenizer has one, which
    is the context of its first token and is not itself counted. The last row is padded under a zero mask: no
    byte is left out.

    Args:
        texts: documents.
        tokenizer: has `encode`, `end_of_text_id` and `bos_id`.
        length: L.

    Returns:
        {"tokens", "targets": int32 [N, L], "loss_mask": float32 [N, L]}.
    """
    start = text_start_id(tokenizer)
    stream, counted = [start], [0.0]
    for text in texts:
        ids = tokenizer.encode(text)
        stream += [*ids, start]
        counted += [1.0] * len(ids) + [0.0]
    rows = math.ceil((len(stream) - 1) / length)
    tokens = np.zeros(rows * length + 1, np.int32)
    mask = np.zeros(rows * length + 1, np.float32)
    tokens[: len(stream)], mask[: len(stream)] = stream, counted
    return {
        "tokens": tokens[:-1].reshape(rows, length),
        "targets": tokens[1:].reshape(rows, length),
        "loss_mask": mask[1:].reshape(rows, length),
    }


def first_bytes(texts: list[str], limit: int) -> list[str]:
    """An even sample of at most about `limit` bytes: from each text its beginning, in the same share."""
    share = min(1.0, limit / max(1, sum(len(text.encode()) for text in texts)))
    parts = (text[: round(len(text) * share)] if len(text) > 2000 else text for text in texts)
    chosen, size = [], 0
    for part in parts:
        if size < limit:
            chosen.append(part)
            size += len(part.encode())
    return chosen


def even_sample(rows: dict[str, np.ndarray], count: int | None) -> dict[str, np.ndarray]:
    """At most `count` of the rows, evenly spaced; None takes all."""
    total = len(rows["tokens"])
    if count is None or count >= total:
        return rows
    chosen = np.arange(count) * total // count
    return {name: array[chosen] for name, array in rows.items()}


def mean_loss(sum_loss, params, rows: dict[str, np.ndarray], batch_size: int) -> float:
    """Mean negative log-likelihood of the counted tokens, in nats.

    Args:
        sum_loss: jitted `(params, batch) -> scalar`, the sum of masked token losses.
        params: model parameters.
        rows: from `heldout_rows`.
        batch_size: rows per call; the last batch is filled with masked copies.
    """
    total = sum(float(sum_loss(params, batch)) for batch in whole_batches(rows, batch_size))
    return total / float(rows["loss_mask"].sum())


def bits_per_byte(nats_per_token: float, tokens: float, texts: list[str]) -> float:
    """`nats per token * tokens / (ln 2 * bytes of UTF-8)`."""
    return nats_per_token * tokens / (math.log(2) * sum(len(text.encode()) for text in texts))


def compressor_bits_per_byte(train: list[str], heldout: list[str]) -> dict[str, float]:
    """Bits per held-out byte that `xz -9e` and `bz2 -9` add when the held-out part follows the training part.

    Returns:
        {"xz": ..., "bz2": ...}.
    """
    before = "".join(train).encode()
    after = before + "".join(heldout).encode()
    bytes_added = len(after) - len(before)

    def xz(data):
        return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))

    def bz(data):
        return len(bz2.compress(data, 9))

    return {name: 8 * (f(after) - f(before)) / bytes_added for name, f in (("xz", xz), ("bz2", bz))}
