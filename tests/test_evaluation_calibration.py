"""Accuracy on pairs, calibration and baselines: by hand, and on data whose answer is known."""

import sys

import numpy as np
import pytest

from gptjax.errors import MissingPackage
from gptjax.evaluation.calibration import (
    bag_of_words_scores,
    confidence,
    expected_calibration_error,
    fit_temperature,
    make_pairs,
    pair_accuracy,
    reliability,
)

SCORES = np.array([[3.0, 1.0, 1.0, 9.0], [0.5, 0.0, -1.0, 0.0]])
VALID = np.array([[True, True, True, False], [True, True, True, True]])


def test_pairs_by_hand():
    pairs = make_pairs(SCORES, VALID)
    # Of the first three, 1 and 2 tie; 3 does not exist.
    by_hand = {(0, 0, 1): 2.0, (0, 0, 2): 2.0, (1, 0, 1): 0.5, (1, 0, 2): 1.5, (1, 0, 3): 0.5}
    by_hand |= {(1, 1, 2): 1.0, (1, 3, 2): 1.0}
    places = zip(pairs.group.tolist(), pairs.better.tolist(), pairs.worse.tolist(), strict=True)
    assert dict(zip(places, pairs.gap.tolist(), strict=True)) == by_hand
    clear = make_pairs(SCORES, VALID, min_gap=1.0)
    assert len(clear.gap) == 5 and clear.gap.min() == 1.0  # a gap of just min_gap is clear


def test_an_equal_value_counts_half():
    pairs = make_pairs(SCORES[:1], VALID[:1])
    assert pair_accuracy(np.array([[2.0, 1.0, 2.0, 99.0]]), pairs) == 0.75
    assert pair_accuracy(np.zeros((1, 4)), pairs) == 0.5
    assert pair_accuracy(-SCORES[:1], pairs) == 0.0


def test_reliability_and_its_error_by_hand():
    probability = np.array([0.52, 0.54, 0.63, 0.98, 1.0])
    correct = np.array([True, False, True, True, False])
    table = reliability(probability, correct)
    assert [row["count"] for row in table] == [2, 1, 2]
    np.testing.assert_allclose([row["confidence"] for row in table], [0.53, 0.63, 0.99])
    np.testing.assert_allclose([row["accuracy"] for row in table], [0.5, 1.0, 0.5])
    expected = (2 * 0.03 + 1 * 0.37 + 2 * 0.49) / 5
    np.testing.assert_allclose(expected_calibration_error(table), expected)


def test_confidence_by_hand():
    probability, agreed = confidence(np.array([2.0, -2.0, 0.0]), temperature=2.0)
    np.testing.assert_allclose(probability, [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-1)), 0.5])
    np.testing.assert_array_equal(agreed, [1, 0, 0.5])


def test_a_model_without_an_opinion_is_calibrated():
    table = reliability(*confidence(np.zeros(7), 1.0))
    assert expected_calibration_error(table) == 0


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_temperature_recovers_a_known_scale(scale):
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, 40_000)
    better = np.where(rng.random(logit.size) < 1 / (1 + np.exp(-logit)), logit, -logit)
    temperature = fit_temperature(scale * better)
    np.testing.assert_allclose(temperature, scale, rtol=0.03)
    table = reliability(*confidence(scale * better, temperature))
    assert expected_calibration_error(table) < 0.01
    wrong = reliability(*confidence(scale * better, 4 * temperature))
    assert expected_calibration_error(wrong) > 0.1


def test_bag_of_words_learns_which_words_are_liked():
    liked = ["a good film", "good fun", "really good :)", "a fun film"]
    disliked = ["a bad film", "bad food", "really bad !", "bad food here"]
    train, means = liked + disliked, [2.0] * 4 + [-2.0] * 4
    scores = bag_of_words_scores(train * 3, means * 3, ["good fun", "the sky", "bad food"])
    assert scores[0] > scores[1] > scores[2]


def test_without_a_pair_there_is_no_figure():
    nothing = make_pairs(SCORES, np.zeros_like(VALID))
    assert np.isnan(pair_accuracy(SCORES, nothing))
    assert fit_temperature(nothing.difference(SCORES)) == 1.0
    assert np.isnan(expected_calibration_error(reliability(*confidence(nothing.difference(SCORES), 1.0))))


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingPackage, match=r"baseline .* needs scikit-learn: .*'gptjax\[data\]'"):
        bag_of_words_scores(["a"], [1.0], ["a"])
