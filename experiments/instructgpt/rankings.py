"""A reward model on a part of the quickstart's rankings, for budgets of labels and of pairs.

Paper: Ouyang et al. 2022, section 3.5: all pairs of K replies are one element of the batch.
Expected: the figures in README.md.
Time: one to two minutes on one core.
Command: gptjax train experiments/instructgpt/rankings.py
"""

from dataclasses import replace

from experiments.quickstart import config as quickstart
from gptjax.stages.reward import RewardConfig


def config() -> RewardConfig:
    """The configuration of the run."""
    return replace(quickstart().reward, base="runs/quickstart/finetune", groups=600)
