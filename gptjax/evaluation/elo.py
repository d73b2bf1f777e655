"""Elo ratings of policies from pairwise comparisons: the model of Bradley and Terry on the scale of chess.

    P(i beats j) = 1 / (1 + 10^((R_j - R_i) / 400))

Legend: P policies, N prompts that all of them replied to, S resamples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gptjax.evaluation.statistics import percentile_interval

POINTS_PER_NAT = 400 / math.log(10)


def elo_difference(win_rate: float) -> float:
    """How far apart two policies are if one wins this share: ``400 log10(w / (1 - w))`` points.

    Args:
        win_rate: from 0 to 1, a tie counting half; the ends give -inf and inf.

    Source: Elo 1978; Bai et al. 2022 (arXiv 2204.05862), where a nat of preference is 174 points.

    Example:
        >>> round(elo_difference(0.64)), round(elo_difference(0.5)), round(POINTS_PER_NAT)
        (100, 0, 174)
    """
    if not 0 <= win_rate <= 1:
        raise ValueError(f"win_rate = {win_rate} must be from 0 to 1")
    if win_rate in (0, 1):
        return math.copysign(math.inf, win_rate - 0.5)
    return 400 * math.log10(win_rate / (1 - win_rate))


def fit_elo(wins_PxP: np.ndarray) -> np.ndarray:
    """The ratings of greatest likelihood, that of the first policy being 0.

    ``maximise over R:  sum over i, j of w_ij log P(i beats j)``

    by Newton's method. Where a group of policies never loses to the others, the maximum lies at infinity:
    what stands so above the first policy is inf, what stands below -inf, and what nothing links to it nan.

    Args:
        wins_PxP: `[..., P, P]`, w_ij, how often i beat j; a tie is half a win for each. The diagonal is not
            read.

    Returns:
        float64 `[..., P]`, points.

    Raises:
        ValueError: a number of wins is negative or not finite.

    Source: Bradley and Terry 1952; when the maximum is finite: Ford 1957.

    Example:
        >>> fit_elo(np.array([[0.0, 36.0], [64.0, 0.0]])).round(1).tolist()
        [0.0, 100.0]
    """
    wins = np.asarray(wins_PxP, np.float64)
    if not np.isfinite(wins).all() or (wins < 0).any():
        raise ValueError("a number of wins is negative or not finite: look at the scores they come from")
    itself = np.eye(wins.shape[-1])
    wins = wins * (1 - itself)
    linked = itself + (wins > 0)
    for _ in range(len(itself).bit_length()):
        linked = np.minimum(linked @ linked, 1.0)  # a path of wins, of twice the length every time
    above, below = linked[..., 0] > 0, linked[..., 0, :] > 0
    near = above & below
    among = near[..., :, None] & near[..., None, :]
    points = POINTS_PER_NAT * _most_likely(np.where(among, wins, 0.0), near)
    return np.where(near, points, np.where(above, np.inf, np.where(below, -np.inf, np.nan)))


def _most_likely(wins: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Strengths in nats, the first 0, of the policies `near` it, each linked to each by wins and by losses.

    The others have no wins, and stay at 0.
    """
    itself, games = np.eye(wins.shape[-1]), wins + np.swapaxes(wins, -1, -2)
    strength = np.zeros(wins.shape[:-1])
    for _ in range(100):
        expected = 1 / (1 + np.exp(strength[..., None, :] - strength[..., :, None]))
        gradient = (wins - games * expected).sum(-1)
        weights = games * expected * np.swapaxes(expected, -1, -2)
        curvature = itself * (weights.sum(-1) + ~near)[..., None, :] - weights
        step = np.linalg.solve(curvature[..., 1:, 1:], gradient[..., 1:, None])[..., 0]
        strength[..., 1:] += np.clip(step, -2.0, 2.0)
        if np.abs(step).max(initial=0.0) < 1e-10:
            break
    return strength


@dataclass(frozen=True)
class Ratings:
    """Elo ratings and how sure they are.

    Attributes:
        names: the policies; the first has 0 points.
        elo: float64 `[P]`.
        win_rates: float64 `[P, P]`, the share of prompts at which the policy of the row beat that of the
            column; 1/2 on the diagonal.
        resampled: float64 `[S, P]`, ratings of resampled prompts.
    """

    names: tuple[str, ...]
    elo: np.ndarray
    win_rates: np.ndarray
    resampled: np.ndarray

    def lead(self, name: str, other: str) -> dict[str, float]:
        """Points by which a policy is ahead of another: "elo", and its 95 % interval "low" to "high".

        nan where both stand infinitely far from the first policy.
        """
        i, j = self.names.index(name), self.names.index(other)
        with np.errstate(invalid="ignore"):
            low, high = percentile_interval(self.resampled[:, i] - self.resampled[:, j])
            return {"elo": float(self.elo[i] - self.elo[j]), "low": low, "high": high}


def rate(scores: Mapping[str, Sequence[float]], draws: int = 1000, seed: int = 0) -> Ratings:
    """Elo ratings of policies whose replies to the same prompts have scores.

    At every prompt each policy meets each, and the higher score wins; equal scores are a tie. The intervals
    are those of a bootstrap over prompts: one draw takes N of them with replacement, for all pairs alike, so
    that what a prompt does to all policies is not taken for a difference.

    Args:
        scores: policy -> `[N]`, more is better; the first policy is the anchor.
        draws: S.
        seed: of the draws.

    Raises:
        ValueError: the scores are not equally many, there is none, or one is not a number.

    Example:
        >>> ratings = rate({"first": [0.0, 0.0, 1.0, 0.0], "second": [1.0, 0.0, 0.0, 1.0]})
        >>> ratings.win_rates[1].tolist(), ratings.elo.round(1).tolist()
        ([0.625, 0.5], [0.0, 88.7])
    """
    counts = {name: len(values) for name, values in scores.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"every policy needs a score at every prompt, but there are {counts}")
    values = np.array(list(scores.values()), np.float64)
    if np.isnan(values).any():
        raise ValueError(f"{int(np.isnan(values).sum())} scores are not a number: look at what gave them")
    P, N = values.shape
    difference = values[:, None] - values[None]
    outcomes = ((difference > 0) + 0.5 * (difference == 0)).reshape(P * P, N)
    times = np.random.default_rng(seed).multinomial(N, np.full(N, 1 / N), size=draws)
    resampled = fit_elo((times @ outcomes.T).reshape(draws, P, P))
    win_rates = outcomes.mean(1).reshape(P, P)
    return Ratings(tuple(scores), fit_elo(win_rates), win_rates, resampled)
