"""Intervals and tests over seeds: by hand, against SciPy, and how often they are right."""

import itertools

import numpy as np
import pytest
import scipy.stats

from gptjax.evaluation.statistics import (
    bootstrap_interval,
    paired_difference,
    seeds_needed,
    sign_flip_test,
    smallest_p,
)


def test_a_small_interval_goes_through_every_resample():
    values = [0.3, 1.1, 1.2, 2.9, 4.0]
    means = sorted(np.mean(resample) for resample in itertools.product(values, repeat=5))
    # The first mean with at least 2.5 % of the 3,125 at or below it is the 79th.
    np.testing.assert_allclose(bootstrap_interval(values), [means[78], means[-79]], rtol=1e-12)
    assert bootstrap_interval([2.0, 7.0, 3.0]) == (2.0, 7.0)
    assert np.isnan(bootstrap_interval([1.0])).all()


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_a_larger_interval_is_that_of_scipy(level):
    values = np.random.default_rng(0).gamma(2.0, size=40)
    ours = bootstrap_interval(values, level)
    theirs = scipy.stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=level,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    # A 2.5 % quantile of 10,000 means is known to 2 % of the interval.
    np.testing.assert_allclose(ours, theirs, atol=0.03 * (theirs.high - theirs.low))


def test_an_interval_moves_and_turns_with_its_values():
    values = np.random.default_rng(3).normal(size=5)
    low, high = bootstrap_interval(values)
    np.testing.assert_allclose(bootstrap_interval(-values), (-high, -low), rtol=1e-12)
    np.testing.assert_allclose(bootstrap_interval(2 * values + 1), (2 * low + 1, 2 * high + 1), rtol=1e-12)


@pytest.mark.parametrize(("count", "share"), [(2, 0.5), (3, 0.75), (10, 0.90), (30, 0.94)])
def test_how_often_the_interval_holds_the_mean(count, share):
    """Of two and three values it is their range, which misses when all lie on one side: 2 / 2^n."""
    rng = np.random.default_rng(4)
    trials = 1500 if count <= 3 else 500
    held = 0
    for _ in range(trials):
        low, high = bootstrap_interval(rng.normal(size=count), draws=1000)
        held += low <= 0 <= high
    # Three standard errors of a share of so many trials.
    assert abs(held / trials - share) < 3 * np.sqrt(share * (1 - share) / trials)


def test_signs_by_hand():
    assert sign_flip_test([1.0, 2.0, 3.0]) == 2 / 8
    # |1 + 2 - 3| = 0: every choice of signs is as far from 0.
    assert sign_flip_test([1.0, 2.0, -3.0]) == 1.0
    # Sums 6, 4, 2, 0 and their negatives; |4| is reached by 4 of 8.
    assert sign_flip_test([-1.0, 2.0, 3.0]) == 4 / 8
    assert sign_flip_test([0.0, 0.0]) == 1.0
    assert sign_flip_test([5.0]) == 1.0
    assert sign_flip_test([np.inf, 5.0]) == 2 / 4 and sign_flip_test([np.inf] * 3) == 2 / 8
    assert sign_flip_test([np.inf, -np.inf, 5.0]) == sign_flip_test([9.0, -9.0, 5.0]) == 1.0
    assert not paired_difference([np.inf, 5.0], [0.0, 0.0]).significant
    assert (
        np.isnan(sign_flip_test([1.0, np.nan])) and not paired_difference([np.nan] * 9, [0] * 9).significant
    )


@pytest.mark.parametrize("count", [4, 9])
def test_signs_are_those_of_scipy(count):
    differences = np.random.default_rng(count).normal(0.5, size=count)
    theirs = scipy.stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    np.testing.assert_allclose(sign_flip_test(differences), theirs.pvalue, rtol=1e-12)


def test_many_differences_are_tested_by_a_draw():
    differences = np.random.default_rng(1).normal(0.4, size=20)
    exact = np.abs((1 - 2 * ((np.arange(2**20)[:, None] >> np.arange(20)) & 1).astype(np.int8)) @ differences)
    exact = np.mean(exact >= abs(differences.sum()) - 1e-9)
    np.testing.assert_allclose(sign_flip_test(differences), exact, atol=3 * np.sqrt(exact / 100_000))
    assert sign_flip_test(np.arange(1.0, 41.0)) == 1 / 100_001, "the observed signs are counted"


def test_equal_arms_are_seldom_told_apart():
    rng = np.random.default_rng(5)
    rejected = np.mean([sign_flip_test(rng.normal(size=8)) <= 0.05 for _ in range(2000)])
    # 12 of the 256 choices of signs are 4.7 %.
    assert abs(rejected - 12 / 256) < 3 * np.sqrt(0.047 / 2000)


def test_three_seeds_cannot_show_a_difference_and_six_can():
    assert smallest_p(3) == 0.25 and seeds_needed() == 6
    assert smallest_p(seeds_needed()) <= 0.05 < smallest_p(seeds_needed() - 1)
    better = np.array([1.0, 1.1, 0.9, 1.2, 1.0, 0.95])
    three, six = (paired_difference(better[:n], np.zeros(n)) for n in (3, 6))
    assert three.low > 0 and three.p == three.smallest_p == 0.25 and not three.significant
    assert six.p == 2 / 64 and six.significant
    assert not paired_difference(better[:1], [0.0]).significant


def test_pairing_takes_out_what_both_arms_share():
    rng = np.random.default_rng(6)
    shared = rng.normal(0, 10, size=8)
    difference = paired_difference(shared + 0.1 + rng.normal(0, 0.02, 8), shared)
    assert difference.significant and difference.high - difference.low < 0.1
    noise = paired_difference(rng.normal(size=8), rng.normal(size=8))
    assert noise.low < 0 < noise.high and not noise.significant
