"""What a reward model is worth: accuracy on pairs, calibration, and two baselines beside it.

Legend: G groups (prompts), K completions of a group, P pairs.
"""

import math
from dataclasses import dataclass

import numpy as np

from gptjax.errors import require


@dataclass(frozen=True)
class Pairs:
    """Ordered pairs of completions of the same prompt.

    Attributes:
        group: int `[P]`, the prompt's row.
        better, worse: int `[P]`, columns of the completion the humans put first and of the other.
        gap: float `[P]`, by how much the human scores differ.
    """

    group: np.ndarray
    better: np.ndarray
    worse: np.ndarray
    gap: np.ndarray

    def difference(self, values_GxK: np.ndarray) -> np.ndarray:
        """Value of the better completion minus that of the worse, `[P]`."""
        return values_GxK[self.group, self.better] - values_GxK[self.group, self.worse]


def make_pairs(scores_GxK: np.ndarray, valid_GxK: np.ndarray, min_gap: float = 0.0) -> Pairs:
    """Every pair of a prompt whose human scores differ by more than 0 and at least `min_gap`."""
    gap = scores_GxK[:, :, None] - scores_GxK[:, None, :]
    both = valid_GxK[:, :, None] & valid_GxK[:, None, :]
    group, better, worse = np.nonzero(both & (gap > 0) & (gap >= min_gap))
    return Pairs(group, better, worse, gap[group, better, worse])


def pair_accuracy(values_GxK: np.ndarray, pairs: Pairs) -> float:
    """Share of pairs in which the better completion has the higher value; an equal value counts half.

    nan where there is no pair.
    """
    if not len(pairs.gap):
        return math.nan
    difference = pairs.difference(values_GxK)
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def reliability(probability_P: np.ndarray, correct_P: np.ndarray, bins: int = 10) -> list[dict]:
    """Mean confidence and accuracy in equal-width bins of the confidence in [0.5, 1].

    Args:
        probability_P: predicted probability of the completion the model prefers, `[P]`.
        correct_P: whether the humans prefer it too, 0 to 1.
        bins: number of bins; empty ones are left out.

    Returns:
        rows {"confidence", "accuracy", "count"}.
    """
    edges = np.linspace(0.5, 1.0, bins + 1)
    which = np.clip(np.digitize(probability_P, edges) - 1, 0, bins - 1)
    return [
        {
            "confidence": float(probability_P[which == b].mean()),
            "accuracy": float(correct_P[which == b].mean()),
            "count": int((which == b).sum()),
        }
        for b in range(bins)
        if (which == b).any()
    ]


def expected_calibration_error(table: list[dict]) -> float:
    """`sum over bins of count / total * |accuracy - confidence|` (Naeini et al. 2015).

    nan where the table is empty.
    """
    if not table:
        return math.nan
    total = sum(row["count"] for row in table)
    return sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in table) / total


def brier_score(probability_P: np.ndarray, correct_P: np.ndarray) -> float:
    """`mean of (probability - correct)^2` (Brier 1950): 0 is perfect, 0.25 a coin; nan without a pair.

    Args:
        probability_P, correct_P: as in `reliability`.
    """
    return float(np.mean((probability_P - correct_P) ** 2)) if len(probability_P) else math.nan


def confidence(difference_P: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Probability given to the completion the model prefers, and whether the humans agree: `[P]` each.

    Where the model prefers neither, half agree.
    """
    probability = 1 / (1 + np.exp(-np.abs(difference_P) / temperature))
    return probability, (difference_P > 0) + 0.5 * (difference_P == 0)


def root_mean_square(difference_P: np.ndarray) -> float:
    """The size of differences, in which scales are searched; 1 where all are 0."""
    return float(np.sqrt(np.mean(np.square(difference_P)))) or 1.0


def fit_temperature(difference_P: np.ndarray) -> float:
    """The T that minimises `mean log(1 + exp(-difference / T))` (Guo et al. 2017); 1 where there is no pair.

    Args:
        difference_P: reward of the better completion minus that of the worse, on pairs not used for testing.
    """
    if not len(difference_P):
        return 1.0
    from scipy.optimize import minimize_scalar

    unit = root_mean_square(difference_P)

    def loss(log_t):
        return float(np.mean(np.logaddexp(0.0, -difference_P / unit / np.exp(log_t))))

    return unit * float(np.exp(minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded").x))


def fit_scale(difference_P: np.ndarray, probability_P: np.ndarray) -> float:
    """The s that minimises the cross-entropy of `sigmoid(s * difference)` to given probabilities.

    It brings a reward model's scale, which is arbitrary, to that of the labeler who gives the probabilities.

    Args:
        difference_P: reward of the first completion minus that of the second.
        probability_P: with which the labeler prefers the first.

    Returns:
        s, from exp(-4) to exp(4) over the root mean square of the differences.

    Source: Gao et al. 2022, section 2.2, on recalibrating proxies by soft labels.

    Example:
        >>> difference = np.array([-2.0, 0.5, 1.0])
        >>> round(fit_scale(difference, 1 / (1 + np.exp(-3.0 * difference))), 2)
        3.0
    """
    from scipy.optimize import minimize_scalar

    unit = root_mean_square(difference_P)

    def loss(log_s):
        scaled = np.exp(log_s) * difference_P / unit
        return float(np.mean(np.logaddexp(0.0, scaled) - probability_P * scaled))

    return float(np.exp(minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded").x)) / unit


def bag_of_words_scores(train_texts: list[str], train_means: list[float], texts: list[str]) -> np.ndarray:
    """A linear baseline: ridge regression of the mean rating on counts of words and word pairs.

    Args:
        train_texts, train_means: rated texts of the training split.
        texts: texts to score.

    Returns:
        float `[len(texts)]`.

    Raises:
        MissingPackage: scikit-learn is not installed.
    """
    require("sklearn")
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline

    words = CountVectorizer(ngram_range=(1, 2), min_df=2, binary=True, token_pattern=r"[\w']+|[!?:;()]+")
    model = make_pipeline(words, Ridge(alpha=10.0))
    return model.fit(train_texts, train_means).predict(texts)
