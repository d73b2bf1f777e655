"""Bits per byte: every byte counted once, by hand and against the compressors' own programs."""

import math
import shutil
import subprocess

import numpy as np
import pytest

from gptjax.data.corpora import read_documents
from gptjax.evaluation.perplexity import (
    bits_per_byte,
    compressor_bits_per_byte,
    first_bytes,
    heldout_rows,
    mean_loss,
)
from gptjax.evaluation.zero_shot import completion_row


class Bytes:
    """A tokenizer with one token a byte."""

    pad_id = end_of_text_id = 256
    bos_id = None

    def encode(self, text):
        return list(text.encode())


def test_rows_by_hand():
    rows = heldout_rows(["ab", "c"], Bytes(), 3)
    np.testing.assert_array_equal(rows["tokens"], [[256, 97, 98], [256, 99, 256]])
    np.testing.assert_array_equal(rows["targets"], [[97, 98, 256], [99, 256, 0]])
    np.testing.assert_array_equal(rows["loss_mask"], [[1, 1, 0], [1, 0, 0]])


def test_a_piece_that_begins_texts_stands_before_each():
    begun = Bytes()
    begun.bos_id = 257
    rows = heldout_rows(["ab", "c"], begun, 3)
    np.testing.assert_array_equal(rows["tokens"], [[257, 97, 98], [257, 99, 257]])
    np.testing.assert_array_equal(rows["loss_mask"], [[1, 1, 0], [1, 0, 0]])
    row = completion_row("a", "b", begun, 4)
    np.testing.assert_array_equal(row["tokens"], [257, 97, 98, 256])
    np.testing.assert_array_equal(row["loss_mask"], [0, 1, 0, 0])


@pytest.mark.parametrize("length", [1, 7, 64, 10_000])
def test_every_byte_is_counted_once(length, tokenizer):
    texts = [d.text for d in read_documents("pydoc", split="heldout")][:3] + ["", "naïve ☃"]
    for encoder in (Bytes(), tokenizer):
        rows = heldout_rows(texts, encoder, length)
        counted = rows["targets"].ravel()[rows["loss_mask"].ravel() > 0]
        whole = [token for text in texts for token in encoder.encode(text)]
        np.testing.assert_array_equal(counted, whole)
        # The token before a target is its context, also across rows.
        stream = np.append(rows["tokens"].ravel(), 0)
        inside = rows["loss_mask"].ravel() > 0
        np.testing.assert_array_equal(stream[1:][inside][:-1], rows["targets"].ravel()[inside][:-1])


def test_bits_per_byte_by_hand():
    # A uniform guess among 256 bytes costs 8 bits a byte; 2 nats on each of 3 tokens for 4 bytes (ï is 2).
    assert math.isclose(bits_per_byte(math.log(256), 5, ["abcde"]), 8)
    assert math.isclose(bits_per_byte(2.0, 3, ["a", "ïb"]), 2 * 3 / (4 * math.log(2)))


def test_mean_loss_weighs_tokens_and_not_batches():
    rows = {
        "targets": np.arange(10, dtype=np.float32).reshape(5, 2),
        "tokens": np.zeros((5, 2), np.int32),
        "loss_mask": np.array([[1, 1], [0, 1], [0, 0], [1, 0], [1, 1]], np.float32),
    }
    shapes = set()

    def sum_loss(params, batch):
        shapes.add(batch["loss_mask"].shape)
        return params * (batch["targets"] * batch["loss_mask"]).sum()

    for batch_size in (1, 2, 3, 8):
        assert math.isclose(mean_loss(sum_loss, 10.0, rows, batch_size), 10 * (0 + 1 + 3 + 6 + 8 + 9) / 6)
    assert shapes == {(1, 2), (2, 2), (3, 2), (8, 2)}  # one shape a size: nothing is compiled again


def test_first_bytes_takes_the_beginning_of_every_long_text():
    texts = ["a" * 10_000, "b" * 30_000]
    assert first_bytes(texts, 4_000) == ["a" * 1_000, "b" * 3_000]
    assert first_bytes(texts, 50_000) == texts
    short = [str(i) * 100 for i in range(10)]
    assert first_bytes(short, 250) == short[:3]


def added(program, before, after):
    """Bits per added byte by a program's own output sizes."""
    sizes = [
        len(subprocess.run(program, input=data, capture_output=True, check=True).stdout)
        for data in (before, after)
    ]
    return 8 * (sizes[1] - sizes[0]) / (len(after) - len(before))


def test_compressors_agree_with_their_programs():
    train = [d.text[:20_000] for d in read_documents("shakespeare")[:2]]
    heldout = [d.text[:5_000] for d in read_documents("shakespeare", split="heldout")[:2]]
    bits = compressor_bits_per_byte(train, heldout)
    before = "".join(train).encode()
    after = before + "".join(heldout).encode()
    programs = {"xz": ["xz", "-9e", "-c"], "bz2": ["bzip2", "-9", "-c"]}
    missing = [program[0] for program in programs.values() if not shutil.which(program[0])]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    assert {name: added(program, before, after) for name, program in programs.items()} == bits
    assert 1.5 < bits["xz"] < 4 and 1.5 < bits["bz2"] < 4


def test_a_repeated_text_costs_xz_next_to_nothing():
    text = read_documents("shakespeare")[0].text[:20_000]
    assert compressor_bits_per_byte([text], [text])["xz"] < 0.05
