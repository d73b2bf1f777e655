"""How far a policy may be optimised against a proxy before the true reward falls (Gao et al. 2022).

With ``d = sqrt(KL(policy, initial policy))`` in sqrt(nats) and the gold reward centred at the initial policy:

    best-of-n:               R(d) = d (alpha - beta d)
    reinforcement learning:  R(d) = d (alpha - beta ln d)

Both are linear in alpha and beta, so that their least-squares fit is exact and has an ordinary interval.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gptjax.evaluation.statistics import LEVEL

Kind = Literal["best_of_n", "rl"]


@dataclass(frozen=True)
class Fit:
    """One curve through measured points.

    Attributes:
        kind: which of the two forms.
        alpha, beta: coefficients, reward units per sqrt(nat).
        alpha_interval, beta_interval: 95 % intervals (Student's t), or None with fewer than three points.
        r_squared: share of the gold reward's square that the curve explains.
        points: how many were fitted.
    """

    kind: Kind
    alpha: float
    beta: float
    alpha_interval: tuple[float, float] | None
    beta_interval: tuple[float, float] | None
    r_squared: float
    points: int

    def gold(self, distance) -> np.ndarray:
        """R(d), float64 in the shape of `distance`; 0 at 0."""
        columns = _columns(np.asarray(distance, float), self.kind)
        return columns @ np.array([self.alpha, -self.beta])

    @property
    def peak(self) -> float | None:
        """The d of the highest R; see `peak_of`."""
        return peak_of(self.alpha, self.beta, self.kind)


def fit_gold(distance, gold, kind: Kind) -> Fit:
    """Least squares of the gold reward on the distance.

    Args:
        distance: `[n]`, sqrt(nats), not negative; points at 0 say nothing and are left out.
        gold: `[n]`, mean gold reward minus that of the initial policy.
        kind: "best_of_n" or "rl".

    Returns:
        the fit; its intervals take the points' deviations from the curve as independent.

    Raises:
        ValueError: fewer than two points beyond 0, or a number that is not finite.

    Source: Gao, Schulman and Hilton 2022 (arXiv 2210.10760), section 3.1.

    Example:
        >>> d = np.array([1.0, 2.0, 3.0])
        >>> fit = fit_gold(d, d * (0.5 - 0.1 * d), "best_of_n")
        >>> round(fit.alpha, 6), round(fit.beta, 6), round(fit.peak, 6)
        (0.5, 0.1, 2.5)
    """
    distance, gold = np.asarray(distance, float), np.asarray(gold, float)
    if not (np.isfinite(distance).all() and np.isfinite(gold).all()):
        raise ValueError("a distance or a gold reward is not finite: look for the run that diverged")
    kept = distance > 0
    if kept.sum() < 2:
        raise ValueError(f"{kept.sum()} points beyond distance 0: a curve of two coefficients needs two")
    x, y = _columns(distance[kept], kind) * [1.0, -1.0], gold[kept]
    coefficients, _, rank, _ = np.linalg.lstsq(x, y)
    if rank < 2:
        raise ValueError("all points lie at one distance: measure at several")
    rest, freedom = y - x @ coefficients, len(y) - 2
    intervals = [None, None]
    if freedom > 0:
        from scipy.stats import t

        spread = np.sqrt(np.diag(np.linalg.inv(x.T @ x)) * (rest @ rest) / freedom) * t.ppf(0.975, freedom)
        intervals = [(float(c - s), float(c + s)) for c, s in zip(coefficients, spread, strict=True)]
    total = float(y @ y)
    alpha, beta = map(float, coefficients)
    explained = 1.0 - float(rest @ rest) / total if total else 1.0
    return Fit(kind, alpha, beta, *intervals, explained, len(y))


def resampled_fits(distance_SxN, gold_SxN, kind: Kind) -> np.ndarray:
    """alpha and beta of many curves at once: float64 `[S, 2]`, nan where the points fix no curve.

    Args:
        distance_SxN, gold_SxN: S resamples of N points, as for `fit_gold`; points at distance 0 say nothing.
        kind: which of the two forms.
    """
    x_SxNx2 = _columns(np.asarray(distance_SxN, float), kind) * [1.0, -1.0]
    squares = np.einsum("snp,snq->spq", x_SxNx2, x_SxNx2)
    products = np.einsum("snp,sn->sp", x_SxNx2, np.asarray(gold_SxN, float))
    size = squares[:, 0, 0] * squares[:, 1, 1]
    fixed = np.linalg.det(squares) > 1e-12 * size
    found = np.full((len(squares), 2), np.nan)
    found[fixed] = np.linalg.solve(squares[fixed], products[fixed][..., None])[..., 0]
    return found


def bootstrap_intervals(coefficients_Sx2: np.ndarray, kind: Kind, level: float = LEVEL) -> dict:
    """Percentile intervals of alpha, beta and the peak over resamples.

    Args:
        coefficients_Sx2: from `resampled_fits`; rows of nan are left out.
        kind: which of the two forms.
        level: probability that each interval is to hold.

    Returns:
        "alpha", "beta" and "peak" (d): [low, high]; an end of the peak is None where the curve of that
        resample never falls. "falls": the share of the resamples whose curve does. All are None where no
        resample fixes a curve.
    """
    alpha, beta = coefficients_Sx2[~np.isnan(coefficients_Sx2).any(1)].T
    if not len(alpha):
        return {"alpha": None, "beta": None, "peak": None, "falls": None}
    peaks = np.array([peak_of(a, b, kind) for a, b in zip(alpha, beta, strict=True)], float)
    peaks = np.where(np.isnan(peaks), np.inf, peaks)  # of None: it comes later than any
    outside = math.ceil(len(alpha) * (1 - level) / 2)

    def interval(values):
        ordered = np.sort(values)
        ends = ordered[outside - 1], ordered[-outside]
        return [float(end) if math.isfinite(end) else None for end in ends]

    return {
        "alpha": interval(alpha),
        "beta": interval(beta),
        "peak": interval(peaks),
        "falls": float(np.isfinite(peaks).mean()),
    }


def peak_of(alpha: float, beta: float, kind: Kind) -> float | None:
    """The d of the highest R, `alpha / (2 beta)` or `exp(alpha / beta - 1)`; None if R never falls.

    It is 0 where the best of n falls from the start.
    """
    if beta <= 0:
        return None
    return max(alpha, 0.0) / (2 * beta) if kind == "best_of_n" else math.exp(min(alpha / beta - 1, 700.0))


def _columns(distance: np.ndarray, kind: Kind) -> np.ndarray:
    """The two columns that alpha and -beta multiply: `[..., 2]`."""
    if kind == "best_of_n":
        return np.stack([distance, distance**2], -1)
    positive = np.where(distance > 0, distance, 1.0)  # d ln d is 0 at 0
    return np.stack([distance, distance * np.log(positive)], -1)


def turnover(distance, gold) -> dict[str, float] | None:
    """Where the measured gold reward was highest, and what was lost by going on.

    Args:
        distance, gold: `[n]` in the order of training.

    Returns:
        `distance` and `gold` of the highest point, `lost` until the last; None while the last is the highest.
    """
    distance, gold = np.asarray(distance, float), np.asarray(gold, float)
    best = int(gold.argmax())
    if best == len(gold) - 1:
        return None
    return {
        "distance": float(distance[best]),
        "gold": float(gold[best]),
        "lost": float(gold[best] - gold[-1]),
    }
