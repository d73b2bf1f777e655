"""Bundled corpora and a user's files: the right text, each part once, every bad row counted."""

import gzip
import json

import pytest

from gptjax.data.corpora import BUNDLED, cut, read_documents
from gptjax.data.files import bucket
from gptjax.data.quality import BadRows, DataError


def both(name_or_path):
    return read_documents(name_or_path), read_documents(name_or_path, split="heldout")


def test_shakespeare_is_42_works_cut_near_their_end():
    train, heldout = both("shakespeare")
    assert len(train) == len(heldout) == 42
    total = sum(len(a.text) + len(b.text) for a, b in zip(train, heldout, strict=True))
    assert total == 5_057_198
    for start, end in zip(train, heldout, strict=True):
        assert start.source == end.source
        assert start.text.endswith("\n")
        assert 0.05 <= len(end.text) / (len(start.text) + len(end.text)) < 0.09
    hamlet = next(d.text for d in train if d.source == "shakespeare/hamlet")
    assert "To be, or not to be,--that is the question:--" in hamlet
    assert "Gutenberg" not in "".join(d.text for d in train + heldout)


def test_pydoc_holds_out_every_20th_topic():
    train, heldout = both("pydoc")
    topics = sorted(d.source for d in train + heldout)
    assert [d.source for d in heldout] == topics[::20]
    assert "pydoc/lambda" in topics


def test_ratings_texts_are_those_of_the_split():
    train, heldout = both("ratings")
    assert (len(train), len(heldout)) == (19059, 4644)
    assert {d.source for d in train} == {
        f"ratings/{source}" for source in ("tweets", "movie_reviews", "product_reviews", "editorials")
    }


def test_reading_twice_gives_the_same():
    for name in BUNDLED:
        assert read_documents(name, split="heldout") == read_documents(name, split="heldout")


def test_cut_keeps_all_text_and_starts_the_second_part_with_a_line():
    text = "".join(f"line {n}\n" for n in range(100))
    start, end = cut(text)
    assert start + end == text
    assert start.endswith("\n") and end.startswith("line ")
    assert cut("no newline at all") == ("", "no newline at all")


def test_unknown_name_says_the_nearest():
    with pytest.raises(DataError, match="named 'shakespear'.*nearest bundled name is 'shakespeare'"):
        read_documents("shakespear")


def test_unknown_split_is_refused():
    with pytest.raises(DataError, match="neither 'train' nor 'heldout'"):
        read_documents("pydoc", split="test")


def test_rows_of_a_directory_plain_and_gzipped_are_split_by_their_hash(tmp_path):
    texts = [f"document {n} é" for n in range(400)]
    (tmp_path / "deeper").mkdir()
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts[:200]))
    packed = "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts[200:399])
    (tmp_path / "deeper" / "b.jsonl.gz").write_bytes(gzip.compress(packed.encode()))
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(texts[399].encode()))
    (tmp_path / "notes.md").write_text("not read")
    rows = BadRows()
    train = read_documents(tmp_path, bad_rows=rows)
    heldout = read_documents(str(tmp_path), split="heldout")
    assert sorted(d.text for d in train + heldout) == sorted(texts)
    assert rows.summary() == "0 of 400 rows are bad"
    assert all(bucket(d.text, 20) == 0 for d in heldout)
    assert 5 <= len(heldout) <= 40
    assert {d.source for d in train} == {
        str(tmp_path / name) for name in ("a.jsonl", "deeper/b.jsonl.gz", "c.txt.gz")
    }


def test_one_long_text_file_is_cut(tmp_path):
    text = "".join(f"line {n}\r\n" for n in range(1000))
    (tmp_path / "book.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    train, heldout = both(tmp_path / "book.txt")
    assert train[0].text + heldout[0].text == text
    assert len(train) == len(heldout) == 1


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b'{"text": "caf\xe9"}', "not UTF-8"),
        (b'{"text": "half a pair \\ud800"}', "not UTF-8"),
        (b'{"text": "no end', "not JSON"),
        (b'["a list"]', "not JSON"),
        (b'{"txt": "another name"}', "missing field"),
        (b'{"text": 3}', "malformed field"),
        (b'{"text": " \\n"}', "empty text"),
    ],
)
def test_each_kind_of_bad_row_is_counted_and_named(tmp_path, line, kind):
    file = tmp_path / "rows.jsonl"
    good = b'{"text": "good"}\n'
    file.write_bytes(good + line + b"\n\n" + good)
    rows = BadRows()
    with pytest.raises(DataError, match=rf"rows.jsonl:2 \({kind}\)"):
        read_documents(file, bad_rows=rows)
    assert rows.counts == {kind: 1}
    assert rows.good_rows == 2
    file.write_bytes(good * 1200 + line + b"\n")
    assert len(read_documents(file)) in (0, 1200)


def test_a_text_file_that_is_not_utf8_names_the_line(tmp_path):
    (tmp_path / "old.txt").write_bytes(b"fine\nfine\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"old.txt:3 \(not UTF-8\)"):
        read_documents(tmp_path / "old.txt")


def test_a_broken_gzip_file_is_named(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"text " * 100)[:-9])
    with pytest.raises(DataError, match="a.txt.gz is not a whole gzip file"):
        read_documents(tmp_path)


def test_a_directory_without_text_and_a_split_without_documents_are_errors(tmp_path):
    with pytest.raises(DataError, match="no file that ends in"):
        read_documents(tmp_path)
    (tmp_path / "a.txt").write_text("alpha")
    (tmp_path / "b.txt").write_text("beta")
    with pytest.raises(DataError, match="no heldout document among its 2"):
        read_documents(tmp_path, split="heldout")
