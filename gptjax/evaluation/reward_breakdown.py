"""Where a reward model is right: by source, labeler, confidence, votes, gap, length; does it like length?

Legend: G groups (prompts), K completions of a group, P pairs.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from gptjax.evaluation.calibration import Pairs
from gptjax.evaluation.statistics import LEVEL


def right(values_GxK: np.ndarray, pairs: Pairs) -> np.ndarray:
    """1 where the better completion has the higher value, 0.5 where the values are equal: `[P]`."""
    difference = pairs.difference(values_GxK)
    return (difference > 0) + 0.5 * (difference == 0)


def accuracy_by_name(names_P: Sequence[str], right_P: np.ndarray) -> list[dict]:
    """Accuracy of every name.

    Returns:
        rows {"value", "accuracy", "pairs"}, by name.

    Example:
        >>> accuracy_by_name(["b", "a", "b"], np.array([1.0, 1.0, 0.0]))[1]
        {'value': 'b', 'accuracy': 0.5, 'pairs': 2}
    """
    names = np.asarray(names_P)
    return [
        {
            "value": str(name),
            "accuracy": float(right_P[names == name].mean()),
            "pairs": int((names == name).sum()),
        }
        for name in np.unique(names)
    ]


def accuracy_by_quarter(values_P: np.ndarray, right_P: np.ndarray) -> list[dict]:
    """Accuracy of the quarters of the pairs by a number, the lowest first.

    Equal numbers stay together, so that quarters may differ in size or be fewer.

    Returns:
        rows {"from", "to", "accuracy", "pairs"}; from and to are the least and the greatest number.
    """
    if not len(values_P):
        return []
    edges = np.unique(np.quantile(values_P, [0.25, 0.5, 0.75], method="inverted_cdf"))
    which = np.searchsorted(edges, values_P, side="left")
    return [
        {
            "from": float(values_P[which == quarter].min()),
            "to": float(values_P[which == quarter].max()),
            "accuracy": float(right_P[which == quarter].mean()),
            "pairs": int((which == quarter).sum()),
        }
        for quarter in np.unique(which)
    ]


def reward_breakdown(
    rewards_GxK: np.ndarray,
    lengths_GxK: np.ndarray,
    pairs: Pairs,
    names_G: Mapping[str, Sequence[str]],
    votes_GxK: np.ndarray,
) -> dict[str, list[dict]]:
    """Accuracy on pairs by what is known of them.

    Args:
        rewards_GxK: what the model gives.
        lengths_GxK: tokens of prompt and completion.
        pairs: from `make_pairs`.
        names_G: what is told by name, such as "source", "labeler" and "confidence"; "" where not known.
        votes_GxK: people behind each score, 0 where not known.

    Returns:
        those of `names_G` (rows of `accuracy_by_name`), "votes" (the fewer of both), "gap" (of the human
        scores) and "length_gap" (tokens of the better minus tokens of the worse; rows of
        `accuracy_by_quarter`). What is known of no pair is left out.
    """
    correct, found = right(rewards_GxK, pairs), {}
    for name, of_group in names_G.items():
        names = np.asarray(of_group, dtype=object)[pairs.group]
        known = names != ""
        if known.any():
            found[name] = accuracy_by_name(names[known].astype(str), correct[known])
    votes = np.minimum(votes_GxK[pairs.group, pairs.better], votes_GxK[pairs.group, pairs.worse])
    numbers = {"gap": pairs.gap, "length_gap": pairs.difference(lengths_GxK)}
    if (votes > 0).any():
        found["votes"] = accuracy_by_quarter(votes[votes > 0], correct[votes > 0])
    return found | {name: accuracy_by_quarter(values, correct) for name, values in numbers.items()}


def length_slope(
    values_GxK: np.ndarray, lengths_GxK: np.ndarray, valid_GxK: np.ndarray, draws: int = 2000, seed: int = 0
) -> dict[str, float]:
    """Regression of a value on the length among the completions of a prompt.

    ``slope = sum of (l - mean l of the prompt)(v - mean v of the prompt) / sum of (l - mean l)^2``

    Only completions of one prompt are compared, so that prompts that ask for long answers do not count. Read
    the slope of the reward beside that of the human scores: people may like length as well.

    Args:
        values_GxK: rewards or human scores.
        lengths_GxK: tokens.
        valid_GxK: which completions exist.
        draws, seed: of the bootstrap over prompts.

    Returns:
        "slope" in units of the value per token; "low" and "high", its 95 % bootstrap interval; "correlation"
        within prompts. nan where no prompt has completions of two lengths.

    Example:
        >>> found = length_slope(np.array([[1.0, 3.0]]), np.array([[10, 14]]), np.array([[True, True]]))
        >>> found["slope"], found["correlation"]
        (0.5, 1.0)
    """
    lengths, values = (_centred(x, valid_GxK) for x in (lengths_GxK, values_GxK))
    squares, products = (lengths**2).sum(1), (lengths * values).sum(1)
    if not squares.sum():
        return dict.fromkeys(("slope", "low", "high", "correlation"), math.nan)
    index = np.random.default_rng(seed).integers(0, len(squares), (draws, len(squares)))
    below = squares[index].sum(1)
    slopes = (products[index].sum(1) / np.where(below > 0, below, np.nan))[below > 0]
    tail = (1 - LEVEL) / 2
    spread = math.sqrt(squares.sum() * (values**2).sum())
    return {
        "slope": float(products.sum() / squares.sum()),
        "low": float(np.quantile(slopes, tail)),
        "high": float(np.quantile(slopes, 1 - tail)),
        "correlation": float(products.sum() / spread) if spread else math.nan,
    }


def _centred(x_GxK: np.ndarray, valid_GxK: np.ndarray) -> np.ndarray:
    """x minus its mean over the valid completions of the prompt, 0 where there is none."""
    count = np.maximum(valid_GxK.sum(1, keepdims=True), 1)
    kept = np.where(valid_GxK, x_GxK, 0.0)
    return np.where(valid_GxK, kept - kept.sum(1, keepdims=True) / count, 0.0)
