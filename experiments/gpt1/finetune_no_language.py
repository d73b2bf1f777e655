"""The fine-tuning without language modelling beside the task.

Paper: Radford et al. 2018, table 5.
Expected: 0.699 of held-out texts right (three seeds).
Time: one minute on one core.
Command: gptjax train experiments/gpt1/finetune_no_language.py
"""

from dataclasses import replace

from experiments.gpt1.finetune import config as base
from gptjax.stages.classify import ClassifyConfig


def config() -> ClassifyConfig:
    """The configuration of the run."""
    return replace(base(), lm_weight=0.0)
