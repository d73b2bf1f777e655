"""Sentence pairs: what is read, refused, counted, held out, padded and batched."""

import json
from collections import Counter

import numpy as np
import pytest

from gptjax.data.parallel import (
    PairBatches,
    SentencePair,
    needed_length,
    pair_rows,
    read_pairs,
    split_pairs,
)
from gptjax.data.quality import BadRows, DataError

END = 9


def read(path, source="zh", target="en"):
    bad_rows = BadRows()
    return read_pairs(path, source, target, bad_rows), bad_rows


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_pairs_of_jsonl_and_tsv_in_either_direction(tmp_path):
    write_jsonl(
        tmp_path / "a.jsonl", [{"doc": "faq", "en": "Yes. ", "zh": "是。"}, {"en": "No.", "zh": "不。"}]
    )
    (tmp_path / "b.tsv").write_bytes("\ufeffzh\ten\r\n树\ta tree\r\n\r\n".encode())
    (tmp_path / "notes.txt").write_text("no pairs")
    pairs, bad_rows = read(tmp_path)
    expected = [
        SentencePair("是。", "Yes.", "faq"),
        SentencePair("不。", "No."),
        SentencePair("树", "a tree"),
    ]
    assert pairs == expected and bad_rows.good_rows == 3
    assert read(tmp_path / "b.tsv", "en", "zh")[0] == [SentencePair("a tree", "树")]


def test_untranslated_and_repeated_pairs_are_counted_and_left_out(tmp_path):
    rows = [{"en": "tree", "zh": "树"}, {"en": "tree", "zh": "树"}, {"en": "str", "zh": "str"}]
    pairs, bad_rows = read(write_jsonl(tmp_path / "a.jsonl", [*rows, {"en": "wood", "zh": "树"}]))
    assert [p.target for p in pairs] == ["tree", "wood"]
    assert bad_rows.repeated == 2 and bad_rows.good_rows == 4


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b'{"en": "tree"}', "missing field: zh"),
        (b'{"en": "tree", "zh": 3}', "malformed field: zh and en must be texts"),
        (b'{"en": " ", "zh": "a"}', "empty text"),
        (b'{"en": "tree", "zh": "\\ud800"}', "not UTF-8"),
        (b"[1]", "not JSON: a row must be an object"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_rows_are_named(tmp_path, line, kind):
    (tmp_path / "a.jsonl").write_bytes(b'{"en": "a", "zh": "b"}\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"a.jsonl:2 \({kind}\)"):
        read(tmp_path)


def test_bad_lines_of_tsv_are_named(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"zh\ten\na\tb\tc\n\xff\tb\n")
    with pytest.raises(
        DataError, match=r"a.tsv:2 \(malformed field: \d cells for \d columns\); .*a.tsv:3 \(not UTF-8\)"
    ):
        read(tmp_path)
    (tmp_path / "a.tsv").write_bytes(b"chinese\tenglish\na\tb\n")
    with pytest.raises(DataError, match="missing field"):
        read(tmp_path)


def pairs_of(documents, each):
    return [SentencePair(f"q{d} {i}", f"w{d} {i}", f"doc{d}") for d in range(documents) for i in range(each)]


def test_whole_documents_are_held_out():
    split = split_pairs(pairs_of(60, 4))
    documents = [{pair.document for pair in side} for side in (split.train, split.heldout)]
    assert not documents[0] & documents[1] and split.familiar == 0
    assert len(split.train) + len(split.heldout) == 240 and 1 <= len(documents[1]) <= 10


def test_no_held_out_side_is_a_near_duplicate_of_one_in_training():
    pairs = pairs_of(60, 4)
    held = split_pairs(pairs).heldout[0]
    # The same target in other case beside another source, and a source of nearly the same words.
    document = next(p.document for p in split_pairs(pairs).train)
    long = "the parser returns an empty list where nothing matches the given pattern at all"
    copies = [SentencePair("another source", held.target.upper(), document)]
    copies += [SentencePair(f"{long} here", "target one", document), SentencePair(long, "two", held.document)]
    split = split_pairs([*pairs, *copies])
    assert held not in split.heldout and copies[2] not in split.heldout
    assert split.familiar == 2 and split.train.count(copies[0]) == 1


def test_without_documents_clusters_are_split():
    pairs = [SentencePair(f"source {i}", f"target {i // 2}") for i in range(200)]
    split = split_pairs(pairs)
    assert split.heldout and not {p.target for p in split.train} & {p.target for p in split.heldout}
    with pytest.raises(DataError, match="no held-out pair is left of 1"):
        split_pairs(pairs[:1])


def test_rows_by_hand():
    rows = pair_rows([([3, 4, 5], [6, 7]), ([8], [])], 4, END)
    assert rows["sources"].tolist() == [[3, 4, 5, 0], [8, 0, 0, 0]]
    assert rows["source_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert rows["tokens"].tolist() == [[END, 6, 7, 0], [END, 0, 0, 0]]
    assert rows["targets"].tolist() == [[6, 7, END, 0], [END, 0, 0, 0]]
    assert rows["loss_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert needed_length(([3, 4, 5], [6, 7])) == 3 and needed_length(([3], [6, 7])) == 3


@pytest.fixture(scope="module")
def encoded():
    rng = np.random.default_rng(0)
    return [([i + 10] * rng.integers(1, 9), [i + 10] * rng.integers(1, 8)) for i in range(90)]


def test_every_pair_comes_once_a_cycle_in_the_shortest_bucket_that_holds_it(encoded):
    batches = PairBatches(encoded, (4, 8), 32, seed=0, end_id=END)
    short = sum(needed_length(ids) <= 4 for ids in encoded)
    cycle = -(-short // 8) + -(-(90 - short) // 4)
    seen = Counter()
    for step in range(cycle):
        batch = batches.batch_at(step)
        assert batch["tokens"].shape in ((8, 4), (4, 8))
        lengths = np.maximum(batch["source_mask"].sum(1), batch["loss_mask"].sum(1))
        assert (lengths > 4).all() == (batch["tokens"].shape[1] == 8)
        seen.update(batch["sources"][:, 0].tolist())
    # The last batch of a bucket is filled with the first pairs of its next round.
    assert set(seen) == {ids[0][0] for ids in encoded} and max(seen.values()) <= 2


def test_a_batch_is_a_function_of_its_step_and_the_seed(encoded):
    first, again, other = (PairBatches(encoded, (4, 8), 32, seed=s, end_id=END) for s in (0, 0, 1))
    for step in (7, 40, 3):
        ours, same = first.batch_at(step), again.batch_at(step)
        assert all((ours[name] == same[name]).all() for name in ours)
    assert any(
        first.batch_at(s)["tokens"].shape != other.batch_at(s)["tokens"].shape
        or (first.batch_at(s)["tokens"] != other.batch_at(s)["tokens"]).any()
        for s in range(3)
    )


def test_a_pair_that_fits_nowhere_is_refused():
    with pytest.raises(DataError, match="needs 8 tokens, but the longest bucket has 4"):
        PairBatches([([1], [1]), ([1] * 8, [1])], (4,), 16, seed=0, end_id=END)
    with pytest.raises(DataError, match="no sentence pair to train on"):
        PairBatches([], (4,), 16, seed=0, end_id=END)
