"""Is a text unlike those a model was trained on? Mahalanobis distances of hidden states.

Legend: N texts, D features.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Gaussian:
    """What the features of familiar texts are like.

    Attributes:
        mean: float64 `[D]`.
        precision: `[D, D]`, inverse of the shrunken covariance.
        variance: `[D]`, its diagonal.
    """

    mean: np.ndarray
    precision: np.ndarray
    variance: np.ndarray


def fit_gaussian(features_NxD: np.ndarray, shrinkage: float = 0.1) -> Gaussian:
    """Mean and covariance of the features of familiar texts.

    ``S = (1 - shrinkage) C + shrinkage diag(C)`` with C the covariance (divided by N)

    Shrinking towards the diagonal keeps every feature's own scale, and makes S invertible where N is small
    beside D.

    Args:
        features_NxD: `[N, D]`, N >= 2; every feature varies.
        shrinkage: 0 for the covariance, 1 for its diagonal.

    Raises:
        ValueError: a feature is the same for every text.
    """
    features = np.asarray(features_NxD, np.float64)
    mean = features.mean(0)
    covariance = (features - mean).T @ (features - mean) / len(features)
    variance = covariance.diagonal().copy()
    if not (variance > 0).all():
        raise ValueError(f"feature {int(variance.argmin())} is the same for all {len(features)} texts")
    shrunken = (1 - shrinkage) * covariance + shrinkage * np.diag(variance)
    return Gaussian(mean, np.linalg.inv(shrunken), variance)


def unfamiliarity(features_NxD: np.ndarray, familiar: Gaussian) -> np.ndarray:
    """Simplified relative Mahalanobis distance: how unusual the features are *together*.

    ``(x - m)^T S^-1 (x - m) - (x - m)^T diag(S)^-1 (x - m)``

    The second term takes off what single features far from their mean would do by themselves, such as those
    of a rare word. The larger, the less familiar; it may be negative.

    Args:
        features_NxD: `[N, D]`.
        familiar: from `fit_gaussian`.

    Returns:
        float64 `[N]`.

    Source: Bai et al. 2022 (HH), on detecting what is out of distribution, after Ren et al. 2021,
        arXiv 2106.09022.

    Example:
        >>> corners = np.array([[1.0, 1.0], [-1.0, -1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
        >>> familiar = fit_gaussian(corners, shrinkage=0.0)  # the two features correlate by 1 / 3
        >>> unfamiliarity(np.array([[1.0, 1.0], [1.0, -1.0]]), familiar).round(3).tolist()
        [-0.5, 1.0]
    """
    centred = np.asarray(features_NxD, np.float64) - familiar.mean
    together = np.einsum("nd,de,ne->n", centred, familiar.precision, centred)
    return together - (centred**2 / familiar.variance).sum(1)


def auroc(familiar_N: np.ndarray, unfamiliar_M: np.ndarray) -> float:
    """The probability that an unfamiliar text scores higher than a familiar one; equal scores count half.

    0.5 cannot tell them apart.

    Example:
        >>> auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
        0.875
    """
    ordered = np.sort(familiar_N)
    below = np.searchsorted(ordered, unfamiliar_M, side="left")
    not_above = np.searchsorted(ordered, unfamiliar_M, side="right")
    return float((below + not_above).mean() / (2 * len(ordered)))
