"""Best of n: draw n replies and keep the one that scores highest; the plainest optimiser of a reward.

Legend: G prompts, N replies drawn for each.
"""

import math

import numpy as np


def best_of_n_kl(n: float) -> float:
    """How far best-of-n lies from the policy it draws from, in nats: ``log n - (n - 1) / n``.

    Exact where no two replies have the same score and probability, an upper bound else (Beirami et al. 2024).

    Args:
        n: replies drawn, at least 1.

    Raises:
        ValueError: n is below 1.

    Source: Stiennon et al. 2020, appendix G.3; Gao et al. 2022, section 2.

    Example:
        >>> round(best_of_n_kl(16), 3), round(best_of_n_kl(60_000), 1)
        (1.835, 10.0)
    """
    if not n >= 1:
        raise ValueError(f"best of {n}: at least 1 reply must be drawn")
    return math.log(n) - (n - 1) / n


def doublings(most: int) -> list[int]:
    """The sizes 1, 2, 4 and so on up to `most`, itself included.

    Example:
        >>> doublings(6)
        [1, 2, 4, 6]
    """
    return sorted({2**i for i in range(most.bit_length())} | {most})


def rank_probabilities(count: int, n: int) -> np.ndarray:
    """The probability of each of `count` samples, worst first, to be the best of n drawn without replacement.

    ``p_i = C(i - 1, n - 1) / C(count, n)`` for ranks i = 1 ... count.

    Worked out from the best downwards as ``p_{i-1} = p_i (i - n) / (i - 1)``, which never overflows.

    Args:
        count: N.
        n: at most N.

    Returns:
        [N] float64, summing to 1.

    Raises:
        ValueError: n is not from 1 to `count`.

    Example:
        >>> rank_probabilities(4, 2).round(4).tolist()
        [0.0, 0.1667, 0.3333, 0.5]
    """
    if not 1 <= n <= count:
        raise ValueError(
            f"best of {n} from {count} samples: n must be from 1 to {count}; draw more or lower n"
        )
    ranks = np.arange(count, 1, -1, dtype=np.float64)
    falling = n / count * np.cumprod(np.concatenate([[1.0], np.maximum(ranks - n, 0) / (ranks - 1)]))
    return falling[::-1]


def expected_best_of_n(scores: np.ndarray, n: int, values: np.ndarray | None = None) -> np.ndarray:
    """The expected value of the best of n, from N >= n samples of each prompt; unbiased.

    The mean, over all C(N, n) sets of n samples, of the value of the one that scores highest. One draw of n a
    prompt has the same mean and a far larger variance.

    Args:
        scores: [..., N] real, by which the best is chosen (a proxy, in Gao et al. 2022).
        n: at most N.
        values: [..., N], what is averaged (gold scores); None for the scores themselves.

    Returns:
        [...] float64. Among equal scores each sample is as likely to be chosen.

    Raises:
        ValueError: n is not from 1 to N, shapes differ, or a score is not a number.

    Source: Nakano et al. 2021 (WebGPT), appendix I.

    Example:
        >>> float(expected_best_of_n(np.array([3.0, 1.0, 2.0]), 2).round(4))
        2.6667
    """
    scores = np.asarray(scores, np.float64)
    values = scores if values is None else np.asarray(values, np.float64)
    if scores.shape != values.shape:
        raise ValueError(f"best of n: scores have shape {scores.shape}, values {values.shape}")
    _refuse_nan(scores)
    probabilities = rank_probabilities(scores.shape[-1], n)
    flat = zip(scores.reshape(-1, scores.shape[-1]), values.reshape(-1, scores.shape[-1]), strict=True)
    return np.array([_expected(s, v, probabilities) for s, v in flat]).reshape(scores.shape[:-1])


def _expected(scores_N: np.ndarray, values_N: np.ndarray, probabilities_N: np.ndarray) -> float:
    """Of one prompt; equal scores share the probability of their ranks."""
    order = np.argsort(scores_N, kind="stable")
    _, group = np.unique(scores_N[order], return_inverse=True)
    mean_value = np.bincount(group, values_N[order]) / np.bincount(group)
    return float(np.dot(np.bincount(group, probabilities_N), mean_value))


def select_best(scores: np.ndarray) -> np.ndarray:
    """Which reply scores highest, the first among equals: [..., N] -> integer [...].

    Raises:
        ValueError: a score is not a number, or there is none to choose from.

    Example:
        >>> select_best(np.array([[0.1, 0.7, 0.7], [2.0, -1.0, 0.0]])).tolist()
        [1, 0]
    """
    scores = np.asarray(scores)
    if not scores.shape[-1]:
        raise ValueError("best of n: there is no score to choose from")
    _refuse_nan(scores)
    return np.argmax(scores, axis=-1)


def _refuse_nan(scores: np.ndarray) -> None:
    if np.isnan(scores).any():
        raise ValueError(
            f"best of n: {int(np.isnan(scores).sum())} scores are not a number: look at what gave them"
        )
