"""Elo ratings: by hand, against a likelihood that SciPy maximises, at infinity, and their intervals."""

import doctest
import math

import numpy as np
import pytest
import scipy.optimize

from gptjax.evaluation import elo
from gptjax.evaluation.elo import elo_difference, fit_elo, rate


def test_examples_run():
    results = doctest.testmod(elo)
    assert results.attempted >= 4 and results.failed == 0


@pytest.mark.parametrize(("wins", "points"), [(64, 99.95), (50, 0.0), (75, 190.85), (10, -381.70)])
def test_two_policies_by_hand(wins, points):
    assert elo_difference(wins / 100) == pytest.approx(points, abs=0.005)
    ratings = fit_elo(np.array([[0.0, 100 - wins], [wins, 0.0]]))
    np.testing.assert_allclose(ratings, [0.0, points], atol=0.005)


def test_ends_of_the_scale():
    assert elo_difference(1.0) == math.inf and elo_difference(0.0) == -math.inf
    with pytest.raises(ValueError, match="win_rate = 1.5 must be from 0 to 1"):
        elo_difference(1.5)


def random_wins(policies, seed):
    """Wins of every policy over every other, halves among them."""
    rng = np.random.default_rng(seed)
    wins = rng.integers(1, 60, (policies, policies)) + 0.5 * rng.integers(0, 2, (policies, policies))
    return wins * (1 - np.eye(policies))


@pytest.mark.parametrize("policies", [2, 3, 6])
def test_ratings_maximise_the_likelihood(policies):
    wins = random_wins(policies, policies)

    def negative(points):
        ratings = np.concatenate([[0.0], points])
        difference = ratings[:, None] - ratings[None]
        return np.sum(wins * np.log1p(10 ** (-difference / 400)))

    found = scipy.optimize.minimize(negative, np.zeros(policies - 1), method="BFGS", tol=1e-9)
    np.testing.assert_allclose(fit_elo(wins)[1:], found.x, atol=0.05)
    # At the maximum every policy wins as often as its ratings say (Bradley and Terry 1952).
    ratings = fit_elo(wins)
    expected = (wins + wins.T) / (1 + 10 ** ((ratings[None] - ratings[:, None]) / 400))
    np.testing.assert_allclose(expected.sum(1), wins.sum(1), rtol=1e-9)


def test_the_anchor_shifts_all_alike():
    wins = random_wins(4, 1)
    order = [2, 0, 1, 3]
    ratings, moved = fit_elo(wins), fit_elo(wins[np.ix_(order, order)])
    np.testing.assert_allclose(moved, (ratings - ratings[2])[order], atol=1e-8)
    np.testing.assert_allclose(fit_elo(np.stack([wins * 7, wins.T])), [ratings, -ratings], atol=1e-8)


def test_lopsided_wins_converge():
    wins = np.array([[0, 0.5, 0.5], [255.5, 0, 128], [255.5, 128, 0]])
    np.testing.assert_allclose(fit_elo(wins)[1:], 2 * [elo_difference(255.5 / 256)], rtol=1e-6)


def test_what_always_wins_is_infinitely_far():
    # The second always beats the first, the fourth loses to all; the third is the first's equal.
    wins = np.array([[0, 0, 5, 9], [9, 0, 9, 9], [5, 0, 0, 9], [0, 0, 0, 0]])
    np.testing.assert_array_equal(fit_elo(wins), [0, np.inf, 0, -np.inf])
    # In a ring nobody is above anybody.
    np.testing.assert_allclose(fit_elo(np.roll(np.eye(3), 1, axis=1)), 0, atol=1e-9)
    apart = fit_elo(np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]]))
    assert np.isnan(apart[2]) and apart[1] == 0
    with pytest.raises(ValueError, match="negative or not finite"):
        fit_elo(np.array([[0, -1], [1, 0]]))


def test_scores_become_wins_and_ties_halves():
    scores = {"first": [0, 1, 2, 3, 4], "second": [1, 1, 2, 5, 9], "third": [0, 0, 3, 9, 9]}
    ratings = rate({name: values * 20 for name, values in scores.items()}, draws=20)
    by_hand = [[0.5, 0.2, 0.3], [0.8, 0.5, 0.5], [0.7, 0.5, 0.5]]
    np.testing.assert_allclose(ratings.win_rates, by_hand)
    np.testing.assert_allclose(ratings.elo, fit_elo(np.array(by_hand)))
    lead, back = ratings.lead("third", "second"), ratings.lead("second", "third")
    assert lead["elo"] == -back["elo"] and (lead["low"], lead["high"]) == (-back["high"], -back["low"])
    assert ratings.lead("first", "first") == {"elo": 0.0, "low": 0.0, "high": 0.0}


def test_an_infinite_rating_has_an_infinite_interval():
    ratings = rate({"first": [0.0] * 9, "second": [1.0] * 9, "third": [-1.0] * 9}, draws=50)
    assert ratings.lead("second", "first") == {"elo": math.inf, "low": math.inf, "high": math.inf}
    assert math.isnan(ratings.lead("second", "second")["elo"])
    almost = rate({"first": [0.0] * 9, "second": [1.0] * 8 + [-1.0]}, draws=500)
    lead = almost.lead("second", "first")
    assert lead["elo"] == pytest.approx(elo_difference(8 / 9))
    assert lead["low"] < lead["elo"] and lead["high"] == math.inf


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Of two policies, where the win rate is known: the truth is 64 %, a tenth of all are ties."""
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        draw = rng.random(150)
        scores = np.where(draw < 0.59, 1.0, np.where(draw < 0.69, 0.0, -1.0))
        lead = rate({"first": np.zeros(150), "second": scores}, draws=200, seed=seed).lead("second", "first")
        # 96 of 150 are 64 %: an end of the interval may be the truth itself, but for rounding.
        held += lead["low"] - 1e-6 <= elo_difference(0.64) <= lead["high"] + 1e-6
    assert 0.90 <= held / 200 <= 0.985


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        ({"first": [0.0], "second": [0.0, 1.0]}, "every policy needs a score at every prompt"),
        ({"first": [], "second": []}, "every policy needs a score at every prompt"),
        ({"first": [0.0], "second": [math.nan]}, "1 scores are not a number"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(scores, sentence):
    with pytest.raises(ValueError, match=sentence):
        rate(scores)
