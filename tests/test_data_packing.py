"""Packing: nothing lost uncounted, every target beside its token, nothing crosses from example to example."""

import numpy as np
import pytest

from gptjax.data.chat import read_dialogues, render_dialogue
from gptjax.data.packing import lm_batch, pack_documents, pack_examples


def test_documents_are_joined_and_cut_by_hand():
    rows, dropped = pack_documents([[5, 6, 7], [8], [9, 10, 11]], row_length=4, separator_id=2)
    # the stream is 5 6 7 2 8 2 9 10 11 2; a row shares its last id with the next
    assert rows.tolist() == [[5, 6, 7, 2], [2, 8, 2, 9], [9, 10, 11, 2]]
    assert dropped == 0
    rows, dropped = pack_documents([[5, 6, 7], [8]], row_length=4, separator_id=2)
    assert rows.tolist() == [[5, 6, 7, 2]]
    assert dropped == 2
    assert rows.dtype == np.int32


@pytest.mark.parametrize("count", range(0, 14))
def test_every_id_but_the_first_and_the_dropped_is_a_target_once(count):
    ids = list(range(10, 10 + count))
    rows, dropped = pack_documents([ids], row_length=5, separator_id=2)
    targets = lm_batch(rows)["targets"].ravel().tolist()
    stream = [*ids, 2]
    kept = len(stream) - dropped
    assert targets == stream[1:kept]
    assert dropped < 5
    assert rows.shape[1] == 5


def test_no_documents_give_no_rows():
    rows, dropped = pack_documents([], row_length=4, separator_id=2)
    assert rows.shape == (0, 4) and dropped == 0


def test_lm_batch_predicts_the_next_id():
    batch = lm_batch(np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.int32))
    assert batch["tokens"].tolist() == [[1, 2, 3], [5, 6, 7]]
    assert batch["targets"].tolist() == [[2, 3, 4], [6, 7, 8]]
    assert batch["positions"].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert batch["loss_mask"].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert batch["segment_ids"].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert {name: a.dtype.name for name, a in batch.items()} == {
        "tokens": "int32",
        "targets": "int32",
        "loss_mask": "float32",
        "segment_ids": "int32",
        "positions": "int32",
    }


def test_examples_are_packed_by_hand():
    examples = [([1, 2], [0, 1]), ([3, 4, 5, 6], [0, 0, 1, 1]), ([7, 8, 9], [0, 1, 0])]
    batch = pack_examples(examples, row_length=6, pad_id=0)
    # longest first: 3 positions, then 2 in the same row of 5; the last has 1 and opens a second row
    assert batch["tokens"].tolist() == [[3, 4, 5, 7, 8], [1, 0, 0, 0, 0]]
    assert batch["targets"].tolist() == [[4, 5, 6, 8, 9], [2, 0, 0, 0, 0]]
    assert batch["loss_mask"].tolist() == [[0, 1, 1, 1, 0], [1, 0, 0, 0, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2, 2], [1, 0, 0, 0, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2, 0, 1], [0, 0, 0, 0, 0]]


def test_real_dialogues_survive_packing(tokenizer):
    examples = [render_dialogue(d, tokenizer) for d in read_dialogues("chatterbot", split="heldout")]
    examples = [example for example in examples if len(example[0]) <= 129]
    assert len(examples) > 80
    batch = pack_examples(examples, row_length=129, pad_id=tokenizer.pad_id)
    found = []
    for row in range(len(batch["tokens"])):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            here = batch["segment_ids"][row] == segment
            tokens, targets = batch["tokens"][row][here].tolist(), batch["targets"][row][here].tolist()
            assert tokens[1:] == targets[:-1]
            assert batch["positions"][row][here].tolist() == list(range(len(tokens)))
            found.append((tokens[:1] + targets, batch["loss_mask"][row][here].tolist()))
    expected = [(list(ids), [float(m) for m in mask[1:]]) for ids, mask in examples]
    assert sorted(found) == sorted(expected)
    assert (batch["loss_mask"][batch["segment_ids"] == 0] == 0).all()
    assert (batch["segment_ids"] > 0).mean() > 0.9


def test_packing_is_deterministic_and_nearly_full():
    rng = np.random.default_rng(0)
    examples = [(list(range(n)), [1] * n) for n in rng.integers(2, 30, 500)]
    first, second = (pack_examples(examples, row_length=65, pad_id=0) for _ in range(2))
    assert all((first[name] == second[name]).all() for name in first)
    assert (first["segment_ids"] > 0).mean() > 0.97


@pytest.mark.parametrize("example", [([1], [1]), (list(range(7)), [1] * 7), ([1, 2, 3], [1, 1])])
def test_examples_that_can_not_be_packed_are_refused(example):
    with pytest.raises(ValueError, match="example 1 has"):
        pack_examples([([1, 2], [0, 1]), example], row_length=6, pad_id=0)


def test_no_examples_give_no_rows():
    assert pack_examples([], row_length=6, pad_id=0)["tokens"].shape == (0, 5)
