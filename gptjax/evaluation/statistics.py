"""What a few seeds allow to be said: bootstrap intervals and paired tests.

Legend: n seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
# Up to here all n^n resamples, or all 2^n signs, are gone through; beyond, some are drawn.
MOST_ENUMERATED_RESAMPLES = 6
MOST_ENUMERATED_SIGNS = 16


@dataclass(frozen=True)
class Difference:
    """How an arm differs from the baseline, seed by seed.

    Attributes:
        count: n, the seeds that both have.
        mean: mean of arm minus baseline.
        low, high: bootstrap interval of that mean; nan for a single seed.
        p: two-sided p-value of the sign-flip test.
        smallest_p: the smallest that n seeds can give.
    """

    count: int
    mean: float
    low: float
    high: float
    p: float
    smallest_p: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 0 and p is at most 0.05: both are asked for."""
        return self.p <= 1 - LEVEL + 1e-12 and (self.low > 0 or self.high < 0)


def bootstrap_interval(
    values_n: Sequence[float], level: float = LEVEL, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    The interval runs between the (1 - level) / 2 quantiles from below and from above of the means of
    resamples, n values drawn with replacement. Up to six values all n^n resamples are gone through, so that
    nothing is random.

    It is too narrow for few values: of three it is the range, which holds the mean of a symmetric
    distribution 75 times in 100, not 95.

    Args:
        values_n: `[n]`.
        level: probability that the interval is to hold.
        draws: resamples for more than six values.
        seed: of the draws.

    Returns:
        low, high; nan for fewer than two values.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.

    Example:
        >>> bootstrap_interval([1.0, 2.0, 6.0])
        (1.0, 6.0)
    """
    values = np.asarray(values_n, np.float64)
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    if n <= MOST_ENUMERATED_RESAMPLES:
        index = np.indices((n,) * n).reshape(n, -1).T
    else:
        index = np.random.default_rng(seed).integers(0, n, (draws, n))
    return percentile_interval(values[index].mean(axis=1), level)


def percentile_interval(estimates_S: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """The (1 - level) / 2 quantiles, from below and from above, of estimates from S resamples.

    Each is one of the estimates, so that an infinite one does no harm; nan where one is nan.
    """
    estimates, tail = np.asarray(estimates_S, np.float64), (1 - level) / 2
    low = np.quantile(estimates, tail, method="inverted_cdf")
    high = -np.quantile(-estimates, tail, method="inverted_cdf")
    return float(low), float(high)


def sign_flip_test(differences_n: Sequence[float], draws: int = 100_000, seed: int = 0) -> float:
    """Two-sided p-value of the paired permutation test: is the mean difference 0?

    Were the arms alike, each difference could as well have the other sign:

    ``p = share of the 2^n choices of signs with |sum of s_i d_i| >= |sum of d_i|``

    Exact up to 16 differences; beyond, `draws` random choices and the one observed are counted.

    Args:
        differences_n: `[n]`, arm minus baseline of each seed.
        draws: choices of signs for more than 16 differences.
        seed: of the draws.

    Returns:
        p in [2^(1 - n), 1]; nan where a difference is. An infinite difference outweighs all finite ones.

    Source: Fisher 1935, The Design of Experiments, section 21.

    Example:
        >>> sign_flip_test([0.3, 0.1, 0.2])
        0.25
    """
    differences = np.array(differences_n, np.float64)
    n, endless = len(differences), np.isinf(differences)
    # As if it were finite and outweighed all that are: infinities of both signs could not be added.
    differences[endless] = np.sign(differences[endless]) * (1 + 2 * np.abs(differences[~endless]).sum())
    if n <= MOST_ENUMERATED_SIGNS:
        flipped = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    else:
        flipped = np.random.default_rng(seed).integers(0, 2, (draws, n), dtype=np.int8)
        flipped = np.concatenate([np.zeros((1, n), np.int8), flipped])
    if np.isnan(differences).any():
        return math.nan
    sums = np.abs((1 - 2 * flipped) @ differences)
    # The same sum added up with other signs differs in the last bits.
    return float(np.mean(sums >= np.abs(differences.sum()) - 1e-12 * np.abs(differences).sum()))


def smallest_p(count: int) -> float:
    """The smallest two-sided p-value that `count` differences can give: all signs, or all the other way."""
    return 2.0 ** (1 - count)


def seeds_needed(level: float = LEVEL) -> int:
    """The fewest seeds whose smallest p-value is at most 1 - level: 6 for 0.95."""
    return 1 + math.ceil(-math.log2(1 - level))


def paired_difference(arm_n: Sequence[float], baseline_n: Sequence[float]) -> Difference:
    """Compares two arms over the seeds that both have.

    Pairing takes out what a seed does to both arms alike, such as the order of the data.

    Args:
        arm_n, baseline_n: `[n]`, n >= 1, in the same order of seeds.

    Example:
        >>> difference = paired_difference([2.0, 3.0, 4.0], [1.0, 2.5, 3.0])
        >>> round(difference.mean, 3), difference.low, difference.high, difference.p, difference.significant
        (0.833, 0.5, 1.0, 0.25, False)
    """
    differences = np.asarray(arm_n, np.float64) - np.asarray(baseline_n, np.float64)
    low, high = bootstrap_interval(differences)
    n = len(differences)
    return Difference(n, float(differences.mean()), low, high, sign_flip_test(differences), smallest_p(n))
