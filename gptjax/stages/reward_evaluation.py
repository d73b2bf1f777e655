"""What the reward stage measures on held-out rankings.

Legend: G groups (prompts), K completions of a group.
"""

from collections.abc import Sequence

import numpy as np

from gptjax.data.preferences import TOLD_BY, RankedArrays, RankedReplies
from gptjax.data.ratings import load_ratings, split_ratings
from gptjax.evaluation import calibration
from gptjax.evaluation.reward_breakdown import length_slope, reward_breakdown


def evaluate(
    rewards_GxK: np.ndarray, arrays: RankedArrays, groups: Sequence[RankedReplies], clear_gap: float
) -> dict:
    """Held-out accuracy, what it depends on, calibration, length bias and the "longer wins" baseline.

    The temperature of the calibration is fitted on the even prompts and judged on the odd ones.

    Args:
        rewards_GxK: what the model gives.
        arrays: the rankings.
        groups: what `arrays` was encoded from.
        clear_gap: difference of human scores from which a pair counts as clear.
    """
    valid = arrays.lengths > 0
    even, odd = (np.arange(len(valid)) % 2 == parity for parity in (0, 1))
    every = calibration.make_pairs(arrays.scores, valid)
    clear = calibration.make_pairs(arrays.scores, valid, clear_gap)
    fitted = calibration.make_pairs(arrays.scores, valid & even[:, None])
    judged = calibration.make_pairs(arrays.scores, valid & odd[:, None])
    temperature = calibration.fit_temperature(fitted.difference(rewards_GxK))
    raw, cooled = (calibration.confidence(judged.difference(rewards_GxK), t) for t in (1.0, temperature))
    table = calibration.reliability(*cooled)
    lengths = arrays.lengths.astype(np.float64)
    facts = [groups[g] for g in arrays.group]
    votes = np.zeros(valid.shape, int)
    for row, fact in zip(votes, facts, strict=True):
        row[: len(fact.votes)] = fact.votes
    names = {name: [getattr(fact, name) for fact in facts] for name in TOLD_BY}
    return {
        "accuracy": calibration.pair_accuracy(rewards_GxK, every),
        "accuracy_clear": calibration.pair_accuracy(rewards_GxK, clear),
        "longer_wins_clear": calibration.pair_accuracy(lengths, clear),
        "pairs": len(every.gap),
        "pairs_clear": len(clear.gap),
        "temperature": temperature,
        "ece_raw": calibration.expected_calibration_error(calibration.reliability(*raw)),
        "ece": calibration.expected_calibration_error(table),
        "brier_raw": calibration.brier_score(*raw),
        "brier": calibration.brier_score(*cooled),
        "reliability": table,
        "accuracy_by": reward_breakdown(rewards_GxK, lengths, every, names, votes),
        "length_slope": length_slope(rewards_GxK, lengths, valid),
        "length_slope_humans": length_slope(arrays.scores, lengths, valid),
    }


def bag_of_words_accuracy(groups: Sequence[RankedReplies], arrays: RankedArrays, clear_gap: float) -> float:
    """Accuracy of the linear baseline on the clear held-out pairs of the rated texts."""
    train = split_ratings(load_ratings())[0]
    groups = [groups[g] for g in arrays.group]
    texts = [text for group in groups for text in group.completions]
    flat = calibration.bag_of_words_scores([t.text for t in train], [t.mean for t in train], texts)
    values, start = np.zeros(arrays.scores.shape), 0
    for g, group in enumerate(groups):
        values[g, : len(group.completions)] = flat[start : start + len(group.completions)]
        start += len(group.completions)
    return calibration.pair_accuracy(
        values, calibration.make_pairs(arrays.scores, arrays.lengths > 0, clear_gap)
    )
