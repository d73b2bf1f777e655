"""A preference model on an eighth of the ratings: the control of one that arguments.py has pretrained.

Paper: Bai et al. 2022 (HH, arXiv 2204.05862), on preference-model pretraining.
Expected: less accurate than the same on top of arguments.py, `--base runs/hh/arguments`.
Time: half a minute on one core.
Command: gptjax train experiments/hh/few_ratings.py
"""

from dataclasses import replace

from experiments.quickstart import config as quickstart
from gptjax.stages.reward import RewardConfig


def config() -> RewardConfig:
    """The configuration of the run."""
    return replace(quickstart().reward, base="runs/quickstart/finetune", groups=290)
