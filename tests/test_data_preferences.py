"""Preferences: both file formats, every fault counted, and the arrays a reward model reads."""

import gzip
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.data.chat import render_prompt
from gptjax.data.preferences import RankedReplies, encode_ranked, read_preferences, split_preferences
from gptjax.data.quality import BadRows, DataError
from gptjax.losses.ranking import ranking_loss

PROMPT = [{"role": "user", "content": "Say hello."}]


def written(tmp_path, *rows, name="preferences.jsonl"):
    file, lines = tmp_path / name, "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    return file


@pytest.mark.parametrize("name", ["preferences.jsonl", "preferences.jsonl.gz"])
def test_a_pair_is_read_with_the_chosen_above_the_rejected(tmp_path, name):
    file = written(tmp_path, {"prompt": "Say hello.", "chosen": "Hello!", "rejected": "No."}, name=name)
    (group,) = read_preferences(tmp_path)
    assert group == RankedReplies(PROMPT, ["Hello!", "No."], [1.0, 0.0])
    assert group.origin == (str(file), 1)


def test_a_lower_rank_is_a_higher_score_and_equal_ranks_tie(tmp_path):
    dialogue = [{"role": "system", "content": "Be kind."}, *PROMPT]
    row = {"prompt": dialogue, "completions": ["a", "b", "c"], "ranking": [2, 1, 2]}
    (group,) = read_preferences(written(tmp_path, row))
    assert group.prompt == dialogue
    assert group.scores[1] > group.scores[0] == group.scores[2]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "p", "chosen": "a"}, "missing field: rejected"),
        ({"chosen": "a", "rejected": "b"}, "missing field: prompt"),
        ({"prompt": "p", "completions": ["a", "b"]}, "missing field: ranking"),
        ({"prompt": "p", "chosen": "a", "rejected": " "}, "empty text"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "empty text"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "malformed field"),
        ({"prompt": "p", "chosen": "a", "rejected": ["b"]}, "malformed field"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": -1}, "malformed field"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": "much"}, "malformed field"),
        ({"prompt": "p", "completions": "ab", "ranking": [1, 2]}, "malformed field"),
        (
            {"prompt": "p", "completions": ["a", "b"], "ranking": [1]},
            "malformed field: ranking has 1 numbers for 2 texts",
        ),
        ({"prompt": "p", "completions": ["a"], "ranking": [1]}, "malformed field: completions must be two"),
        ({"prompt": "p", "completions": ["a", "b"], "ranking": [1, "2"]}, "malformed field"),
        ({"prompt": "p", "completions": ["a", "b"], "ranking": [1, float("nan")]}, "malformed field"),
        ({"prompt": "p", "completions": ["a", "b"], "ranking": [1, 10**400]}, "malformed field"),
        ({"prompt": "p", "completions": ["a", "b"], "ranking": [1, 1e300]}, "malformed field"),
        ({"prompt": "p", "chosen": "a", "rejected": "\ud800"}, "not UTF-8"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "unknown role"),
        (
            {"prompt": [*PROMPT, {"role": "assistant", "content": "hi"}], "chosen": "a", "rejected": "b"},
            "unknown role",
        ),
    ],
)
def test_each_fault_is_counted_and_named(tmp_path, row, kind):
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    rows = BadRows()
    with pytest.raises(DataError, match=rf"preferences.jsonl:2 \({kind}"):
        read_preferences(written(tmp_path, good, row), rows)
    assert rows.counts == {kind.partition(":")[0]: 1}


def test_encoded_replies_are_the_prompt_the_reply_and_its_end(tokenizer):
    groups = [
        RankedReplies(PROMPT, ["Hello!", "No.", "Good day to you"], [2.5, -1.0, 0.7]),
        RankedReplies(PROMPT, ["One", "Two"], [0.0, 1.0]),
    ]
    arrays = encode_ranked(groups, tokenizer, context_length=64, k_max=4)
    assert arrays.tokens.shape == (2, 4, 64) and arrays.tokens.dtype == np.int32
    assert arrays.lengths.dtype == np.int32
    assert arrays.scores.dtype == np.float32
    prompt = render_prompt(PROMPT, tokenizer)
    for g, group in enumerate(groups):
        for k, completion in enumerate(group.completions):
            length = arrays.lengths[g, k]
            ids = arrays.tokens[g, k, :length].tolist()
            assert ids == [*prompt, *tokenizer.encode(completion), tokenizer.im_end_id]
            assert (arrays.tokens[g, k, length:] == tokenizer.pad_id).all()
    assert arrays.scores.tolist() == [[2.5, -1.0, np.float32(0.7), 0.0], [0.0, 1.0, 0.0, 0.0]]
    assert (arrays.lengths[0, 3], arrays.lengths[1, 2], arrays.lengths[1, 3]) == (0, 0, 0)


def test_a_reply_that_does_not_fit_is_left_out_and_counted(tokenizer):
    long = RankedReplies(PROMPT, ["short", "word " * 100, "brief"], [1.0, 2.0, 3.0])
    alone = RankedReplies(PROMPT, ["short", "word " * 100], [1.0, 2.0])
    rows = BadRows()
    for _ in range(10_000):
        rows.good()
    arrays = encode_ranked([long, alone], tokenizer, context_length=48, k_max=3, bad_rows=rows)
    assert rows.counts == {"longer than the context": 2}
    assert arrays.tokens.shape == (1, 3, 48) and arrays.group.tolist() == [0]
    assert (arrays.lengths[0] > 0).tolist() == [True, False, True]
    assert arrays.scores[0].tolist() == [1.0, 0.0, 3.0]
    with pytest.raises(DataError, match=r"my data:1 \(longer than the context\)"):
        encode_ranked([long], tokenizer, context_length=48, k_max=3, source="my data")
    kept = encode_ranked([long], tokenizer, context_length=48, k_max=3, bundled=True)
    assert (kept.lengths[0] > 0).tolist() == [True, False, True]


def test_more_replies_than_places_is_an_error(tokenizer):
    group = RankedReplies(PROMPT, ["a", "b", "c"], [1.0, 2.0, 3.0])
    with pytest.raises(DataError, match="ranked replies:1 has 3 completions: raise k_max, which is 2"):
        encode_ranked([group], tokenizer, context_length=64, k_max=2)


def test_what_does_not_fit_is_named_by_its_file_and_line(tmp_path, tokenizer):
    short, long = ({"prompt": "p", "chosen": text, "rejected": "b"} for text in ("a", "word " * 100))
    groups = read_preferences(written(tmp_path, short, long))
    with pytest.raises(DataError, match=r"preferences.jsonl:2 \(longer than the context\)"):
        encode_ranked(groups, tokenizer, context_length=48, k_max=2, source="training rankings")
    with pytest.raises(DataError, match="preferences.jsonl:1 has 2 completions: raise k_max"):
        encode_ranked(groups, tokenizer, context_length=48, k_max=1)


def rankings(*prompts):
    return [
        RankedReplies([{"role": "user", "content": p}], [f"a{n}", "b"], [1.0, 0.0])
        for n, p in enumerate(prompts)
    ]


def test_no_prompt_is_in_both_parts_of_the_preferences():
    train, heldout = split_preferences(rankings(*(f"prompt {n % 100}" for n in range(300))))
    assert len(train) + len(heldout) == 300 and 10 <= len(heldout) <= 60
    assert {str(g.prompt) for g in train}.isdisjoint(str(g.prompt) for g in heldout)


@pytest.mark.parametrize("prompts", ["ab", "abcdefgh", "aaaaaaaa"])
def test_a_few_preferences_give_both_parts(prompts):
    train, heldout = split_preferences(rankings(*prompts))
    assert train and heldout and len(train) + len(heldout) == len(prompts)


def test_a_single_preference_is_not_held_out():
    assert split_preferences(rankings("a")) == (rankings("a"), [])
    assert split_preferences([]) == ([], [])


def test_source_labeler_and_confidence_of_a_row_are_kept(tmp_path):
    about = {"source": "web", "labeler": "me", "confidence": 8.0, "score": 3}
    rows = [
        {"prompt": "Hi", "chosen": "a", "rejected": "b"} | about,
        {"prompt": "Hi", "completions": ["a", "b"], "ranking": [1, 2], "labeler": 7, "confidence": "sure"},
    ]
    file = tmp_path / "my.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_preferences(file)
    assert (first.source, first.labeler, second.source, second.labeler) == ("web", "me", "", "")
    assert (first.confidence, second.confidence) == ("8", "sure")


def test_a_margin_is_the_difference_of_the_scores_and_keeps_the_order(tmp_path, tokenizer):
    pair = {"prompt": "Hi", "chosen": "Hello!", "rejected": "No."}
    groups = read_preferences(written(tmp_path, pair, pair | {"margin": 3}, pair | {"margin": 0}))
    assert [group.scores for group in groups[:2]] == [[1.0, 0.0], [3.0, 0.0]]
    arrays = encode_ranked(groups, tokenizer, context_length=48, k_max=2)
    rewards, valid = np.zeros((3, 2), np.float32), arrays.lengths > 0
    for g, margin in enumerate((1.0, 3.0, 0.0)):
        given = rewards[g : g + 1], arrays.scores[g : g + 1], valid[g : g + 1]
        loss, metrics = ranking_loss(*map(jnp.asarray, given), margin_scale=0.5)
        assert float(loss) == pytest.approx(math.log1p(math.exp(0.5 * margin)), abs=1e-6)
        assert metrics["pairs"] == 1 and metrics["ties"] == 0
