"""A preference model on an eighth of the ratings: the control of one that arguments.py has pretrained.

Paper: Bai et al. 2022 (HH, arXiv 2204.05862), on preference-model pretraining.
Expected: 0.60 of held-out pairs right; with `--base runs/hh/arguments` 0.57 (three seeds).
Time: 40 seconds on one core.
Command: gptjax train experiments/hh/few_ratings.py
"""

from dataclasses import replace

from experiments.quickstart import config as quickstart
from gptjax.stages.reward import RewardConfig


def config() -> RewardConfig:
    """The configuration of the run."""
    return replace(quickstart().reward, base="runs/quickstart/finetune", groups=290)
