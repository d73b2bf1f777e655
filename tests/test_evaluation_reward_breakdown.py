"""Where a reward model is right, and whether it likes length: by hand, and where the answer is known."""

import numpy as np
import pytest
import scipy.stats

from gptjax.data.preferences import RankedArrays, RankedReplies
from gptjax.data.ratings import load_ratings, ranked_replies
from gptjax.evaluation.calibration import brier_score, confidence, make_pairs, pair_accuracy
from gptjax.evaluation.reward_breakdown import (
    accuracy_by_name,
    accuracy_by_quarter,
    length_slope,
    reward_breakdown,
    right,
)
from gptjax.stages.reward_evaluation import evaluate

SCORES = np.array([[3.0, 1.0, 2.0], [1.0, 0.0, 0.0], [5.0, 4.0, 0.0]])
VALID = np.array([[True] * 3, [True] * 3, [True, True, False]])
REWARDS = np.array([[0.5, 0.1, 0.9], [0.0, 0.0, -1.0], [0.2, 0.3, 9.0]])
LENGTHS = np.array([[9.0, 4.0, 7.0], [5.0, 5.0, 8.0], [3.0, 6.0, 0.0]])
NAMES = {"source": ["a", "b", "a"], "labeler": ["", "me", ""], "confidence": ["9", "2", ""]}
UNKNOWN = {"source": [""] * 3, "labeler": [""] * 3}
VOTES = np.array([[20, 20, 15], [0, 0, 0], [30, 40, 0]])


def sample(slope=0.0, groups=300, completions=5):
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 60, (groups, completions)).astype(float)
    valid = rng.random(lengths.shape) < 0.9
    of_prompt = 10 * rng.normal(size=(groups, 1))
    return of_prompt + slope * lengths + rng.normal(size=lengths.shape), lengths, valid


def test_a_breakdown_by_hand():
    pairs = make_pairs(SCORES, VALID)
    found = reward_breakdown(REWARDS, LENGTHS, pairs, NAMES, VOTES)
    # Group 0 orders (0, 1) and (2, 1) rightly and (0, 2) wrongly; 1 ties (0, 1), has (0, 2); 2 is wrong.
    assert found["source"] == [
        {"value": "a", "accuracy": 0.5, "pairs": 4},
        {"value": "b", "accuracy": 0.75, "pairs": 2},
    ]
    assert found["labeler"] == [{"value": "me", "accuracy": 0.75, "pairs": 2}]
    assert [(row["value"], row["pairs"]) for row in found["confidence"]] == [("2", 2), ("9", 3)]
    # Fewer votes of both: 20, 15, 15 in group 0, 30 in group 2.
    assert found["votes"] == [
        {"from": 15.0, "to": 15.0, "accuracy": 0.5, "pairs": 2},
        {"from": 20.0, "to": 20.0, "accuracy": 1.0, "pairs": 1},
        {"from": 30.0, "to": 30.0, "accuracy": 0.0, "pairs": 1},
    ]
    # One unit apart: two of group 0 (0.5), two of group 1 (0.75), one of group 2 (0); two apart: right.
    assert [(row["from"], row["accuracy"], row["pairs"]) for row in found["gap"]] == [(1, 0.5, 5), (2, 1, 1)]
    assert found["length_gap"][0] == {"from": -3.0, "to": -3.0, "accuracy": 0.5, "pairs": 2}
    assert sum(row["pairs"] for row in found["length_gap"]) == 6


def test_what_is_not_known_is_left_out():
    pairs = make_pairs(SCORES, VALID)
    found = reward_breakdown(REWARDS, LENGTHS, pairs, UNKNOWN, 0 * VOTES)
    assert set(found) == {"gap", "length_gap"}
    nothing = make_pairs(SCORES, ~VALID & False)
    assert reward_breakdown(REWARDS, LENGTHS, nothing, UNKNOWN, VOTES) == {
        "gap": [],
        "length_gap": [],
    }


def test_parts_add_up_to_the_whole():
    rewards, lengths, valid = sample()
    pairs = make_pairs(np.random.default_rng(1).integers(0, 9, rewards.shape), valid)
    correct = right(rewards, pairs)
    names = np.array(["x", "y", "z"])[pairs.group % 3]
    for rows in (accuracy_by_name(names, correct), accuracy_by_quarter(pairs.difference(lengths), correct)):
        assert len(rows) in (3, 4)
        whole = sum(row["accuracy"] * row["pairs"] for row in rows) / len(correct)
        np.testing.assert_allclose(whole, pair_accuracy(rewards, pairs), rtol=1e-12)
    sizes = [row["pairs"] for row in accuracy_by_quarter(np.arange(400.0), np.ones(400))]
    assert sizes == [100] * 4


def test_a_model_of_length_is_right_where_the_better_is_longer():
    _, lengths, valid = sample()
    pairs = make_pairs(np.random.default_rng(1).normal(size=lengths.shape), valid)
    rows = reward_breakdown(lengths, lengths, pairs, {}, np.zeros(valid.shape))["length_gap"]
    assert rows[0]["accuracy"] == 0 and rows[-1]["accuracy"] == 1


def test_a_slope_is_that_of_a_regression_on_centred_values():
    values, lengths, valid = sample(slope=0.05, groups=30)
    x, y = [], []
    for v, n, on in zip(values, lengths, valid, strict=True):
        x += list(n[on] - n[on].mean())
        y += list(v[on] - v[on].mean())
    theirs, found = scipy.stats.linregress(x, y), length_slope(values, lengths, valid)
    np.testing.assert_allclose(found["slope"], theirs.slope, rtol=1e-9)
    np.testing.assert_allclose(found["correlation"], theirs.rvalue, rtol=1e-9)


@pytest.mark.parametrize("slope", [0.0, 0.03])
def test_a_known_slope_is_found_whatever_the_prompts_are_worth(slope):
    found = length_slope(*sample(slope))
    assert found["low"] < slope < found["high"] and found["high"] - found["low"] < 0.02
    assert (found["low"] > 0) == (slope > 0)


def test_the_interval_holds_the_slope_as_often_as_it_says():
    rng, held = np.random.default_rng(2), 0
    for _ in range(300):
        lengths, valid = rng.normal(size=(40, 3)), np.ones((40, 3), bool)
        found = length_slope(rng.normal(size=(40, 3)), lengths, valid, draws=500)
        held += found["low"] <= 0 <= found["high"]
    assert 0.90 < held / 300 <= 0.98


def test_equal_lengths_have_no_slope():
    found = length_slope(REWARDS, np.ones_like(LENGTHS), VALID)
    assert np.isnan(list(found.values())).all()


def test_brier_by_hand():
    probability, correct = confidence(np.array([np.log(3), -np.log(3), 0.0]), 1.0)
    # 0.75 and right, 0.75 and wrong, undecided: (1 / 16 + 9 / 16 + 0) / 3.
    np.testing.assert_allclose(brier_score(probability, correct), 10 / 48)
    assert np.isnan(brier_score(probability[:0], correct[:0]))


def test_facts_follow_their_prompt_when_one_before_it_was_left_out():
    replies = [
        RankedReplies([], ["a", "b", "c"], [1.0, 2.0, 3.0], source=source, votes=votes)
        for source, votes in (("lost", (9, 9, 9)), ("first", (10, 10, 10)), ("second", (20, 20, 20)))
    ]
    lengths = np.array([[3, 4, 5], [5, 4, 3]])
    arrays = RankedArrays(np.zeros((2, 3, 9), int), lengths, np.array([[1.0, 2, 3]] * 2), np.array([1, 2]))
    figures = evaluate(np.array([[1.0, 2, 3], [3.0, 2, 1]]), arrays, replies, 1.0)
    assert [(r["value"], r["accuracy"]) for r in figures["accuracy_by"]["source"]] == [
        ("first", 1),
        ("second", 0),
    ]
    assert [(r["from"], r["accuracy"]) for r in figures["accuracy_by"]["votes"]] == [(10, 1), (20, 0)]
    assert figures["length_slope"]["slope"] == 1.0 and figures["length_slope_humans"]["slope"] == 0.0


def test_rated_texts_know_their_source_and_votes():
    rated = {text.text: text for text in load_ratings()[:3000]}
    group = ranked_replies(list(rated.values()), groups=3, seed=0)[0]
    texts = [rated[text] for text in group.completions]
    assert {text.source for text in texts} == {group.source} and group.labeler == ""
    assert group.votes == tuple(len(text.votes) for text in texts) and min(group.votes) >= 15
    assert group.scores == [text.mean for text in texts]
