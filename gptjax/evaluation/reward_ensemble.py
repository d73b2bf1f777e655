"""Several reward models of the same completions: their mean, and where they disagree.

Legend: M models, G groups (prompts), K completions of a group.
"""

import numpy as np


def standardised(rewards_MxGxK: np.ndarray, valid_GxK: np.ndarray) -> np.ndarray:
    """Every model's rewards with mean 0 and standard deviation 1 over the completions; 0 where there is none.

    Only differences within a prompt are trained, so that scale and zero of the models have nothing in common.
    """
    rewards = np.where(valid_GxK, np.asarray(rewards_MxGxK, np.float64), 0.0)
    count = valid_GxK.sum()
    mean = rewards.sum((1, 2), keepdims=True) / count
    centred = np.where(valid_GxK, rewards - mean, 0.0)
    deviation = np.sqrt((centred**2).sum((1, 2), keepdims=True) / count)
    return centred / np.where(deviation > 0, deviation, 1.0)


def ensemble_mean(rewards_MxGxK: np.ndarray, valid_GxK: np.ndarray) -> np.ndarray:
    """The mean of the models' standardised rewards, `[G, K]`."""
    return standardised(rewards_MxGxK, valid_GxK).mean(0)


def disagreement(rewards_MxGxK: np.ndarray, valid_GxK: np.ndarray) -> np.ndarray:
    """Sample standard deviation over the models of their standardised rewards, `[G, K]`; M >= 2.

    Example:
        >>> rewards = np.array([[[1.0, 3.0]], [[10.0, 30.0]], [[2.0, 0.0]]])
        >>> disagreement(rewards, np.array([[True, True]])).round(3).tolist()
        [[1.155, 1.155]]
    """
    return standardised(rewards_MxGxK, valid_GxK).std(0, ddof=1)
