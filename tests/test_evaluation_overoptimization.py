"""The curves of reward-model overoptimisation: exact recovery, optima by search, intervals that cover."""

import numpy as np
import pytest

from gptjax.evaluation.overoptimization import bootstrap_intervals, fit_gold, resampled_fits, turnover

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


@pytest.mark.parametrize("kind", FORMS)
def test_many_fits_at_once_are_those_of_one_after_the_other(kind):
    rng = np.random.default_rng(3)
    d = rng.uniform(0.1, 4, (20, 6))
    d[:, 0] = 0.0  # says nothing
    gold = FORMS[kind](np.where(d > 0, d, 1.0), 0.4, 0.1) * (d > 0) + 0.1 * rng.standard_normal(d.shape) * (
        d > 0
    )
    fits = [fit_gold(*row, kind) for row in zip(d, gold, strict=True)]
    np.testing.assert_allclose(resampled_fits(d, gold, kind), [(f.alpha, f.beta) for f in fits], rtol=1e-8)
    assert np.isnan(resampled_fits(np.full((1, 4), 2.0), np.ones((1, 4)), kind)).all()


def test_percentile_intervals_and_peaks_that_never_come():
    beta = np.linspace(-0.1, 0.9, 1001)
    found = bootstrap_intervals(np.stack([np.ones(1001), beta], 1), "best_of_n")
    assert found["alpha"] == [1.0, 1.0]
    assert found["beta"] == [pytest.approx(-0.075, abs=2e-3), pytest.approx(0.875, abs=2e-3)]
    assert found["peak"] == [pytest.approx(1 / 1.75, abs=2e-3), None]
    assert found["falls"] == pytest.approx(0.9, abs=2e-3)
    nothing = bootstrap_intervals(np.full((5, 2), np.nan), "rl")
    assert set(nothing.values()) == {None}


def test_a_best_of_n_that_only_falls_is_best_at_the_start():
    d = np.array([1.0, 2.0, 3.0])
    assert fit_gold(d, -d * (0.1 + 0.2 * d), "best_of_n").peak == 0.0
