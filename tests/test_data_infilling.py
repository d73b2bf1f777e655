"""Blank infilling: the rows by hand, what is left out and where, and ChatGLM's dialogues."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from gptjax.data.chat import read_dialogues
from gptjax.data.corpora import read_documents
from gptjax.data.infilling import (
    SPAN_LENGTHS,
    SPAN_WEIGHTS,
    BlankIds,
    Blanks,
    blank_example,
    document_blank,
    fill_blanks,
    left_to_right_example,
    pack_blanks,
    sentence_blanks,
    sentence_ends,
    stack_examples,
    token_blanks,
)
from gptjax.data.quality import DataError
from gptjax.data.rounds import reply_examples, round_prompt

IDS = BlankIds(cls=100, token=101, sentence=102, document=103, start=104, end=105)
SEPARATOR, PERIOD = 2, 9
ENDS = np.arange(100) == PERIOD
TEXT = np.random.default_rng(0).integers(10, 100, 60).astype(np.int32)


def blanks(**changes):
    settings = {"objectives": {"token": 0.5, "sentence": 0.3, "document": 0.2}, "length": 80}
    return Blanks(ids=IDS, separator_id=SEPARATOR, ends=ENDS, **settings | changes)


def several(text, seed, draw=token_blanks, **more):
    settings = {"rate": 0.15, "most": 9, "separator_id": SEPARATOR}
    return draw(np.asarray(text), np.random.default_rng(seed), **settings | more)


def test_an_example_by_hand():
    """x1 .. x6 with x3 and x5 x6 left out, the paper's figure 2; the second blank comes first in Part B."""
    example = blank_example([11, 12, 13, 14, 15, 16], [(2, 3), (4, 6)], [1, 0], IDS.token, IDS)
    assert example["tokens"].tolist() == [100, 11, 12, 101, 14, 101, 104, 15, 16, 104, 13]
    assert example["targets"].tolist() == [0, 0, 0, 0, 0, 0, 15, 16, 105, 13, 105]
    assert example["positions"][:, 0].tolist() == [0, 1, 2, 3, 4, 5, 5, 5, 5, 3, 3]
    assert example["positions"][:, 1].tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 3, 1, 2]
    assert example["loss_mask"].tolist() == [0] * 6 + [1] * 5
    assert example["blanks"].tolist() == [0, 0, 0, 0, 0, 0, 2, 2, 0, 1, 0]


def test_the_same_blanks_from_the_left_by_hand():
    """Every token follows the whole text before it; those of the blanks count, the end does not."""
    example = left_to_right_example([11, 12, 13, 14], [(1, 2), (3, 4)], IDS)
    assert example["tokens"].tolist() == [100, 103, 104, 11, 12, 13, 14]
    assert example["targets"].tolist() == [0, 0, 11, 12, 13, 14, 105]
    assert example["positions"].tolist() == [[0, 0], [1, 0], [1, 1], [1, 2], [1, 3], [1, 4], [1, 5]]
    assert example["loss_mask"].tolist() == [0, 0, 0, 1, 0, 1, 0]
    assert example["blanks"].tolist() == [0, 0, 0, 1, 0, 2, 0]


def answers_of(example):
    """The blanks of an example, from left to right, read back from Part B by its own marks."""
    in_b = example["positions"][:, 1] > 0
    starts = np.flatnonzero(example["tokens"] == IDS.start)
    ends = [*starts[1:], len(example["tokens"])]
    said = {
        int(example["positions"][s, 0]): example["tokens"][s + 1 : e].tolist()
        for s, e in zip(starts, ends, strict=True)
    }
    assert all(in_b[starts])
    return [said[place] for place in sorted(said)]


@pytest.mark.parametrize("kind", ["token", "sentence", "document"])
def test_part_a_filled_with_part_b_is_the_text(kind):
    text = TEXT.copy()
    text[[7, 19, 33, 47]], text[40] = PERIOD, SEPARATOR
    setting = blanks(objectives={kind: 1.0})
    for seed in range(40):
        example = setting.example(text, np.random.default_rng(seed))
        in_a = example["positions"][:, 1] == 0
        assert fill_blanks(example["tokens"][in_a], answers_of(example), IDS) == text.tolist()
        # Each token of Part B is the target of the one before it, and each blank ends with the end token.
        ended = example["targets"][~in_a] == IDS.end
        np.testing.assert_array_equal(
            example["targets"][~in_a][~ended], example["tokens"][~in_a][1:][~ended[:-1]]
        )
        assert (
            ended.sum()
            == (example["tokens"] == IDS.start).sum()
            == np.isin(example["tokens"], IDS_MASKS).sum()
        )


IDS_MASKS = [IDS.token, IDS.sentence, IDS.document]


def test_spans_leave_out_15_percent_are_never_adjacent_and_stay_inside_documents():
    text = TEXT.copy()
    text[[20, 21, 45]] = SEPARATOR
    starts, lengths = [], []
    for seed in range(400):
        spans = several(text, seed)
        borders = [-1, *(place for span in spans for place in span), len(text) + 1]
        assert all(a < b for a, b in zip(borders[:-1], borders[1:], strict=True))  # a kept token between
        assert not any(SEPARATOR in text[s:e] for s, e in spans)
        starts += [s for s, _ in spans]
        lengths += [e - s for s, e in spans]
    # Each of 60 places is as likely: 400 draws of about 4 spans give every third of the text its share.
    assert 9 <= np.sum(lengths) / 400 < 12
    thirds = np.histogram(starts, [0, 20, 40, 60])[0] / len(starts)
    assert (np.abs(thirds - 1 / 3) < 0.06).all()


def test_span_lengths_are_poisson_without_0():
    """The mean of Poisson(3) cut at 1 is 3 / (1 - e^-3)."""
    weights = SPAN_WEIGHTS / SPAN_WEIGHTS.sum()
    np.testing.assert_allclose(weights @ SPAN_LENGTHS, 3 / (1 - np.exp(-3)), rtol=1e-9)
    drawn = [e - s for seed in range(300) for s, e in several(np.arange(3, 1003), seed, most=60)]
    np.testing.assert_allclose(np.mean(drawn), weights @ SPAN_LENGTHS, rtol=0.02)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_short_text_has_a_blank_all_the_same(size):
    for seed in range(20):
        (span, *_) = several(np.arange(10, 10 + size), seed, rate=0.5)
        assert 0 <= span[0] < span[1] <= size


def test_sentences_are_left_out_whole():
    text = TEXT.copy()
    text[text == PERIOD] = 10
    text[[5, 30, 52]], text[41] = PERIOD, SEPARATOR
    sentences = {(0, 6), (6, 31), (31, 41), (42, 53), (53, 60)}
    chosen = [several(text, seed, sentence_blanks, ends=ENDS) for seed in range(60)]
    assert {span for spans in chosen for span in spans} == sentences
    for spans in chosen:
        assert spans == sorted(spans) and sum(e - s for s, e in spans) >= 0.15 * 60
    # Those drawn first reach the share: without the last one they do not, whichever that was.
    assert min(len(spans) for spans in chosen) == 1 and max(len(spans) for spans in chosen) == 2


def test_a_long_blank_is_the_end_of_the_text():
    sizes = []
    for seed in range(200):
        ((start, end),) = document_blank(TEXT, np.random.default_rng(seed), shortest=0.5)
        assert end == 60
        sizes.append(end - start)
    assert (min(sizes), max(sizes)) == (30, 60)
    assert document_blank(TEXT, np.random.default_rng(0), shortest=1.0) == [(0, 60)]


def test_rows_are_a_function_of_the_seed_and_their_number_alone():
    setting, texts = blanks(), np.stack([TEXT] * 4)
    whole = setting.batch(texts, range(8, 12), seed=3)
    halves = [setting.batch(texts[:2], range(8 + first, 12, 2), seed=3) for first in (0, 1)]
    for name, array in whole.items():
        np.testing.assert_array_equal(array[0::2], halves[0][name])
        np.testing.assert_array_equal(array[1::2], halves[1][name])
    other = setting.batch(texts, range(8, 12), seed=4)
    assert not np.array_equal(whole["tokens"], other["tokens"])
    assert len({row.tobytes() for row in whole["tokens"]}) > 1


def test_objectives_are_drawn_by_weight():
    setting = blanks(objectives={"token": 3.0, "document": 1.0})
    rows = setting.batch(np.stack([TEXT] * 400), range(400), seed=0)
    share = (rows["tokens"] == IDS.document).any(1).mean()
    assert abs(share - 0.25) < 0.07 and not (rows["tokens"] == IDS.sentence).any()


@pytest.mark.parametrize("length", [8, 33, 80, 128])
def test_a_text_of_the_longest_length_fits_whatever_is_drawn(length):
    setting = blanks(length=length)
    n = setting.text_length
    assert n + 2 * setting.most + 1 <= length < n + 2 * setting.most + 5
    texts = np.random.default_rng(1).integers(3, 100, (60, n))
    rows = setting.batch(texts, range(60), seed=0)
    assert rows["tokens"].shape == (60, length) and (rows["loss_mask"].sum(1) > 0).all()
    both, left = setting.heldout(texts, seed=0)
    np.testing.assert_array_equal((both["blanks"] > 0).sum(1), (left["blanks"] > 0).sum(1))
    for row in range(60):
        both_said, left_said = (
            sorted(x["targets"][row][x["blanks"][row] > 0].tolist()) for x in (both, left)
        )
        assert both_said == left_said


def test_packed_examples_keep_their_tokens_and_places():
    made = [blank_example(range(10, 10 + n), [(0, 2)], [0], IDS.token, IDS) for n in (9, 4, 3, 12, 2)]
    rows = pack_blanks(made, 20)
    found = []
    for row in range(len(rows["tokens"])):
        for segment in range(1, rows["segment_ids"][row].max() + 1):
            own = rows["segment_ids"][row] == segment
            found.append(
                {name: array[row][own].tolist() for name, array in rows.items() if name != "segment_ids"}
            )
    assert len(rows["tokens"]) == 3
    for example in made:
        assert {name: array.tolist() for name, array in example.items()} in found
    alone = stack_examples(made, 20)
    assert (
        alone["segment_ids"].sum()
        == rows["segment_ids"].astype(bool).sum()
        == sum(len(e["tokens"]) for e in made)
    )


def test_sentence_ends_are_read_from_the_pieces():
    words = ["<pad>", "end.", "etc", "好。", "吗？ ", ".5", "\n"]
    tokenizer = SimpleNamespace(vocab_size=len(words), token_bytes=lambda i: words[i].encode())
    assert sentence_ends(tokenizer).tolist() == [False, True, False, True, True, False, True]


def turns(*contents):
    return [{"role": ("user", "assistant")[n % 2], "content": c} for n, c in enumerate(contents)]


def test_rounds_are_written_as_chatglm_does():
    assert round_prompt(turns("你好")) == "你好"
    asked = round_prompt(turns("Hi", "Hello!", "Bye"))
    assert asked == "[Round 0]\n问：Hi\n答：Hello!\n[Round 1]\n问：Bye\n答："
    with pytest.raises(DataError, match="no place for a system message"):
        round_prompt([{"role": "system", "content": "Be brief."}, *turns("Hi")])


def test_each_reply_is_the_blank_after_its_prompt(tokenizer):
    ids, messages = BlankIds.after(tokenizer.vocab_size), turns("Hi", "Hello!", "Bye", "Bye now.")
    examples = reply_examples(messages, tokenizer, ids)
    for example, prompt, reply in zip(
        examples, (messages[:1], messages[:3]), ("Hello!", "Bye now."), strict=True
    ):
        asked, said = tokenizer.encode(round_prompt(prompt)), tokenizer.encode(reply)
        assert example["tokens"].tolist() == [*asked, ids.document, ids.start, *said]
        assert example["targets"].tolist() == [0] * (len(asked) + 1) + [*said, ids.end]
        # The reply keeps the position of its mask, and counts from 1.
        assert set(example["positions"][len(asked) :, 0].tolist()) == {len(asked)}
        assert example["positions"][len(asked) :, 1].tolist() == list(range(len(said) + 2))


def test_chinese_dialogues_are_read_and_split():
    pytest.importorskip("chatterbot_corpus", reason="chatterbot-corpus is not installed (gptjax[data])")
    train, heldout = (read_dialogues("chatterbot-chinese", split=split) for split in ("train", "heldout"))
    assert len(train) + len(heldout) == 376 and len(heldout) > 25
    said = {message["content"] for messages in train + heldout for message in messages}
    assert "什么是ai" in said and "你能交配" not in said and "你是残酷的" not in said


def test_a_text_may_stand_in_another_field_of_a_row(tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [{"en": f"text {n}", "zh": f"文 {n}"} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = [d.text for split in ("train", "heldout") for d in read_documents(f"{file}:zh", split=split)]
    assert sorted(read) == sorted(row["zh"] for row in rows)
    with pytest.raises(DataError, match="missing field"):
        read_documents(f"{file}:fr")
    with pytest.raises(DataError, match="there is no bundled source and no file named"):
        read_documents(f"{tmp_path}/other.jsonl:zh")
