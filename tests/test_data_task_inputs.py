"""The four forms of a task, GPT-1's and BERT's, and the examples of a file."""

import json
from types import SimpleNamespace

import pytest

from gptjax.data.quality import BadRows, DataError
from gptjax.data.ratings import load_ratings
from gptjax.data.task_inputs import (
    Example,
    decoder_frame,
    encoder_frame,
    read_examples,
    sentiments,
    sequences,
    task_rows,
)


class Letters:
    """a is 10, b is 11, and so on."""

    pad_id, cls_id, sep_id = 0, 2, 3

    def encode(self, text):
        return [ord(letter) - 87 for letter in text]


GPT, BERT = decoder_frame(Letters(), 40), encoder_frame(Letters())
START, DELIMITER, EXTRACT = 40, 41, 42


def rows(form, frame=GPT, length=8, **example):
    arrays, cut = task_rows([Example("abc", 1, **example)], form, Letters(), frame, length)
    return arrays, cut


def test_the_frames():
    assert (GPT.start, GPT.delimiter, GPT.extract) == (40, 41, 42) and not GPT.types
    assert (BERT.start, BERT.delimiter, BERT.extract) == (2, 3, 3) and BERT.types


@pytest.mark.parametrize(
    ("form", "more", "expected"),
    [
        ("classification", {}, [[START, 10, 11, 12, EXTRACT]]),
        ("entailment", {"second": "de"}, [[START, 10, 11, 12, DELIMITER, 13, 14, EXTRACT]]),
        (
            "similarity",
            {"second": "d"},
            [[START, 10, 11, 12, DELIMITER, 13, EXTRACT], [START, 13, DELIMITER, 10, 11, 12, EXTRACT]],
        ),
        (
            "choice",
            {"answers": ("d", "ef")},
            [[START, 10, 11, 12, DELIMITER, 13, EXTRACT], [START, 10, 11, 12, DELIMITER, 14, 15, EXTRACT]],
        ),
    ],
)
def test_forms_of_gpt1(form, more, expected):
    arrays, cut = rows(form, **more)
    assert cut == 0 and arrays["labels"].tolist() == [1] and arrays["weights"].tolist() == [1.0]
    assert [
        row[: end + 1].tolist() for row, end in zip(arrays["tokens"][0], arrays["ends"][0], strict=True)
    ] == expected
    assert all(
        (row[end + 1 :] == 0).all() for row, end in zip(arrays["tokens"][0], arrays["ends"][0], strict=True)
    )
    assert (arrays["token_types"] == 0).all()


def test_forms_of_bert():
    arrays, _ = rows("entailment", BERT, 9, second="de")
    assert arrays["tokens"].tolist() == [[[2, 10, 11, 12, 3, 13, 14, 3, 0]]]
    assert arrays["token_types"].tolist() == [[[0, 0, 0, 0, 0, 1, 1, 1, 0]]]
    arrays, _ = rows("classification", BERT)
    assert arrays["tokens"].tolist() == [[[2, 10, 11, 12, 3, 0, 0, 0]]] and (arrays["token_types"] == 0).all()


def test_the_longer_text_is_cut():
    arrays, cut = task_rows(
        [Example("abcdef", 0, "gh"), Example("a", 0, "b"), Example("abc", 0, "defg")],
        "entailment",
        Letters(),
        GPT,
        8,
    )
    assert cut == 2
    assert arrays["tokens"][0, 0].tolist() == [START, 10, 11, 12, DELIMITER, 16, 17, EXTRACT]
    assert arrays["tokens"][2, 0].tolist() == [START, 10, 11, DELIMITER, 13, 14, 15, EXTRACT]
    assert arrays["ends"].tolist() == [[7], [4], [7]]


def test_sequences_of_examples_must_agree():
    several = [Example("a", 0, answers=("b", "c")), Example("a", 0, answers=("b", "c", "d"))]
    for examples in (several, []):
        with pytest.raises(DataError, match="one number of sequences"):
            task_rows(examples, "choice", Letters(), GPT, 8)
    with pytest.raises(DataError, match="too short"):
        task_rows([Example("a", 0)], "classification", Letters(), GPT, 5)


def write(path, lines):
    path.write_text("".join(json.dumps(row) + "\n" for row in lines), "utf-8")
    return str(path)


def test_examples_of_a_file(tmp_path):
    lines = [{"text": f"text {n}", "label": n % 3, "second": "b"} for n in range(60)]
    bad_rows = BadRows()
    train, heldout = read_examples(write(tmp_path / "a.jsonl", lines), "entailment", 1.0, bad_rows)
    assert len(train) + len(heldout) == 60 and 1 <= len(heldout) <= 15 and bad_rows.good_rows == 60
    assert train[0].second == "b" and {e.text for e in train}.isdisjoint({e.text for e in heldout})
    again = read_examples(str(tmp_path / "a.jsonl"), "classification", 1.0, BadRows())
    assert [e.text for e in again[0]] == [e.text for e in train]
    choices = [{"text": f"q{n}", "label": n % 2, "answers": ["x", "y"]} for n in range(20)]
    train, heldout = read_examples(write(tmp_path / "c.jsonl", choices), "choice", 1.0, BadRows())
    assert sequences(train[0], "choice") == [(train[0].text, "x"), (train[0].text, "y")]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"text": "a"}, "missing field"),
        ({"text": "a", "label": 0}, "missing field"),
        ({"text": "a", "label": "0", "answers": ["b", "c"]}, "malformed field"),
        ({"text": "a", "label": True, "answers": ["b", "c"]}, "malformed field"),
        ({"text": "a", "label": -1, "answers": ["b", "c"]}, "malformed field"),
        ({"text": "a", "label": 2, "answers": ["b", "c"]}, "malformed field"),
        ({"text": "a", "label": 0, "answers": ["b"]}, "malformed field"),
        ({"text": "a", "label": 0, "answers": "bc"}, "malformed field"),
        ({"text": "a", "label": 0, "answers": ["b", 3]}, "malformed field"),
        ({"text": 5, "label": 0, "answers": ["b", "c"]}, "malformed field"),
    ],
)
def test_bad_rows_of_a_file(tmp_path, row, kind):
    path, bad_rows = write(tmp_path / "bad.jsonl", [row]), BadRows()
    with pytest.raises(DataError, match=kind):
        read_examples(path, "choice", 1.0, bad_rows)
    assert bad_rows.counts == {kind: 1}


def test_too_few_examples(tmp_path):
    path = write(tmp_path / "one.jsonl", [{"text": "a", "label": 0}])
    with pytest.raises(DataError, match="too few"):
        read_examples(path, "classification", 1.0, BadRows())
    with pytest.raises(DataError, match="form=classification"):
        read_examples("ratings", "choice", 1.0, BadRows())


def test_sentiments_of_the_ratings():
    texts = [SimpleNamespace(text=str(mean), mean=mean) for mean in (-2.0, -1.0, -0.9, 0.0, 0.9, 1.0, 3.0)]
    assert [(e.text, e.label) for e in sentiments(texts, 1.0)] == [
        ("-2.0", 0),
        ("-1.0", 0),
        ("1.0", 1),
        ("3.0", 1),
    ]
    train, heldout = read_examples("ratings", "classification", 1.0, BadRows())
    clear = [text for text in load_ratings() if abs(text.mean) >= 1.0]
    assert len(train) + len(heldout) == len(clear) and 3 < len(train) / len(heldout) < 5
