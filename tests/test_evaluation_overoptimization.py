"""The curves of reward-model overoptimisation: exact recovery, optima by search, intervals that cover."""

import numpy as np
import pytest

from gptjax.evaluation.overoptimization import fit_gold, turnover

FORMS = {
    "best_of_n": lambda d, a, b: d * (a - b * d),
    "rl": lambda d, a, b: d * (a - b * np.log(d)),
}


@pytest.mark.parametrize("kind", FORMS)
def test_points_on_a_curve_give_its_coefficients(kind):
    d = np.linspace(0.2, 6, 9)
    fit = fit_gold(np.append(0.0, d), np.append(0.0, FORMS[kind](d, 0.49, 0.12)), kind)
    assert (fit.alpha, fit.beta, fit.points) == (pytest.approx(0.49), pytest.approx(0.12), 9)
    assert fit.r_squared == pytest.approx(1.0) and fit.gold(0.0) == 0.0
    np.testing.assert_allclose(fit.gold(d), FORMS[kind](d, 0.49, 0.12))


@pytest.mark.parametrize("kind", FORMS)
def test_the_peak_is_where_a_search_finds_it(kind):
    d = np.linspace(0.5, 4, 6)
    fit = fit_gold(d, FORMS[kind](d, 0.49, 0.2), kind)
    grid = np.linspace(0.01, 8, 100_000)
    assert fit.peak == pytest.approx(grid[fit.gold(grid).argmax()], abs=1e-3)


def test_the_paper_s_smallest_proxy_peaks_where_its_coefficients_say():
    d = np.linspace(0.3, 3, 8)
    fit = fit_gold(d, FORMS["best_of_n"](d, 0.490, 0.120), "best_of_n")
    assert fit.peak**2 == pytest.approx(4.17, abs=0.01)  # nats
    assert fit.gold(fit.peak) == pytest.approx(0.50, abs=0.005)


@pytest.mark.parametrize("kind", FORMS)
def test_intervals_cover_the_truth_as_often_as_they_say(kind):
    rng, d, covered = np.random.default_rng(0), np.linspace(0.3, 5, 8), np.zeros(2)
    for _ in range(1000):
        fit = fit_gold(d, FORMS[kind](d, 0.5, 0.1) + 0.1 * rng.standard_normal(8), kind)
        low, high = np.array([fit.alpha_interval, fit.beta_interval]).T
        covered += (low < [0.5, 0.1]) & ([0.5, 0.1] < high)
    assert (abs(covered / 1000 - 0.95) < 0.025).all()


def test_a_curve_that_only_rises_has_no_peak():
    d = np.array([1.0, 2.0, 3.0])
    assert fit_gold(d, d + 0.1 * d**2, "best_of_n").peak is None
    assert fit_gold(d, d + 0.1 * d * np.log(d), "rl").peak is None


def test_points_that_fix_no_curve_are_refused():
    with pytest.raises(ValueError, match="1 points beyond distance 0"):
        fit_gold([0.0, 1.0], [0.0, 1.0], "rl")
    with pytest.raises(ValueError, match="one distance"):
        fit_gold([2.0, 2.0], [0.1, 0.2], "best_of_n")
    with pytest.raises(ValueError, match="not finite"):
        fit_gold([1.0, np.nan], [0.1, 0.2], "rl")
    assert fit_gold([1.0, 2.0], [0.1, 0.1], "rl").alpha_interval is None


def test_the_turnover_is_the_highest_point_unless_it_is_the_last():
    assert turnover([0, 1, 2, 3], [0, 0.4, 0.6, 0.1]) == {"distance": 2.0, "gold": 0.6, "lost": 0.5}
    assert turnover([0, 1, 2], [0, 0.4, 0.6]) is None
