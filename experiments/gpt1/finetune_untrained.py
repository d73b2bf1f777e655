"""The same network without pre-training, with language modelling beside the task.

Paper: Radford et al. 2018, table 5.
Expected: 0.560 of held-out texts right (three seeds).
Time: one minute on one core.
Command: gptjax train experiments/gpt1/finetune_untrained.py
"""

from dataclasses import replace

from experiments.gpt1.finetune import config as base
from gptjax.stages.classify import ClassifyConfig


def config() -> ClassifyConfig:
    """The configuration of the run."""
    return replace(base(), fresh=True)
