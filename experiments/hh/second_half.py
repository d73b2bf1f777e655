"""A preference model on the other half of the ratings: the judge in robustness.py.

Paper: Bai et al. 2022 (HH, arXiv 2204.05862), on train-half and test-half preference models.
Expected: about as accurate on held-out rankings as that of the first half.
Time: that of first_half.py.
Command: gptjax train experiments/hh/second_half.py
"""

from dataclasses import replace

from experiments.hh.first_half import config as first_half
from gptjax.stages.reward import RewardConfig


def config() -> RewardConfig:
    """The configuration of the run."""
    return replace(first_half(), half="second")
