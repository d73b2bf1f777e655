"""A preference model on one half of the ratings: the policy's teacher in robustness.py.

Paper: Bai et al. 2022 (HH, arXiv 2204.05862), on train-half and test-half preference models.
Expected: about as accurate on held-out rankings as that of the other half.
Time: 2 minutes on one core.
Command: gptjax train experiments/hh/first_half.py
"""

from dataclasses import replace

from experiments.quickstart import config as quickstart
from gptjax.stages.reward import RewardConfig


def config() -> RewardConfig:
    """The configuration of the run; as many rankings as one pass over half of the texts gives."""
    base = quickstart().reward
    return replace(base, base="runs/quickstart/finetune", half="first", groups=base.groups // 2)
