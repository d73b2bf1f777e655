import doctest
import math
from itertools import combinations

import numpy as np
import pytest

from gptjax.evaluation import best_of_n
from gptjax.evaluation.best_of_n import best_of_n_kl, expected_best_of_n, rank_probabilities, select_best


def test_examples_run():
    results = doctest.testmod(best_of_n)
    assert results.attempted >= 4 and results.failed == 0


@pytest.mark.parametrize(("n", "kl"), [(1, 0.0), (16, 1.835), (64, 3.17), (1000, 5.91), (60_000, 10.0)])
def test_kl_at_published_sizes(n, kl):
    assert best_of_n_kl(n) == pytest.approx(kl, abs=0.005)


@pytest.mark.parametrize("n", [2, 5])
def test_kl_is_that_of_the_best_of_n_distribution(n):
    # Many equally likely replies: the best of n has density n u^(n-1) of the rank u, on a fine grid.
    u = (np.arange(200_000) + 0.5) / 200_000
    density = n * u ** (n - 1)
    assert best_of_n_kl(n) == pytest.approx(np.mean(density * np.log(density)), abs=1e-4)


def test_kl_needs_a_reply():
    with pytest.raises(ValueError, match="best of 0: at least 1 reply"):
        best_of_n_kl(0)


@pytest.mark.parametrize(("count", "n"), [(1, 1), (6, 1), (6, 3), (6, 6), (40, 17)])
def test_rank_probabilities_are_the_binomials(count, n):
    expected = [math.comb(i - 1, n - 1) / math.comb(count, n) for i in range(1, count + 1)]
    np.testing.assert_allclose(rank_probabilities(count, n), expected, rtol=1e-12)


def test_rank_probabilities_do_not_overflow():
    probabilities = rank_probabilities(100_000, 50_000)  # C(100000, 50000) has 30,000 digits
    assert np.isfinite(probabilities).all()
    assert probabilities.sum() == pytest.approx(1, abs=1e-9)
    assert probabilities[-1] == 0.5


@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_the_estimate_is_the_mean_over_all_sets(n):
    rng = np.random.default_rng(n)
    scores, values = rng.normal(size=(2, 6))
    best = [max(chosen, key=scores.__getitem__) for chosen in combinations(range(6), n)]
    assert expected_best_of_n(scores, n) == pytest.approx(np.mean(scores[best]))
    assert expected_best_of_n(scores, n, values) == pytest.approx(np.mean(values[best]))


def test_equal_scores_are_chosen_equally_often():
    scores, values = np.array([0.0, 1.0, 1.0, 1.0, 2.0]), np.array([9.0, 1.0, 2.0, 6.0, 4.0])
    means = []
    for chosen in combinations(range(5), 3):
        top = max(scores[list(chosen)])
        means.append(np.mean([values[i] for i in chosen if scores[i] == top]))
    assert expected_best_of_n(scores, 3, values) == pytest.approx(np.mean(means))
    order = [3, 0, 4, 2, 1]
    assert expected_best_of_n(scores[order], 3, values[order]) == pytest.approx(np.mean(means))


def test_it_is_unbiased_and_varies_less_than_one_draw():
    rng = np.random.default_rng(0)
    uniform = rng.random((4000, 8))
    estimates, draws = expected_best_of_n(uniform, 4), uniform[:, :4].max(1)
    # The mean of the best of 4 uniform numbers is 4/5; four standard errors are 0.008.
    assert estimates.mean() == pytest.approx(0.8, abs=0.008)
    assert estimates.var() < 0.7 * draws.var()


def test_the_best_of_all_is_the_selected_one_and_of_one_the_mean():
    scores = np.random.default_rng(1).normal(size=(3, 2, 7))
    np.testing.assert_allclose(expected_best_of_n(scores, 7), scores.max(-1))
    np.testing.assert_allclose(expected_best_of_n(scores, 1), scores.mean(-1))
    best = select_best(scores)
    assert best.shape == (3, 2)
    np.testing.assert_array_equal(np.take_along_axis(scores, best[..., None], -1)[..., 0], scores.max(-1))


def test_what_cannot_be_chosen_from_is_refused():
    with pytest.raises(ValueError, match="best of 9 from 7 samples: n must be from 1 to 7"):
        expected_best_of_n(np.zeros(7), 9)
    with pytest.raises(ValueError, match="best of 0 from 7"):
        expected_best_of_n(np.zeros(7), 0)
    for choose in (select_best, lambda scores: expected_best_of_n(scores, 1)):
        with pytest.raises(ValueError, match="1 scores are not a number"):
            choose(np.array([[0.0, np.nan], [1.0, np.inf]]))
    with pytest.raises(ValueError, match="no score to choose from"):
        select_best(np.zeros((2, 0)))
    with pytest.raises(ValueError, match=r"scores have shape \(2,\), values \(3,\)"):
        expected_best_of_n(np.zeros(2), 1, np.zeros(3))
