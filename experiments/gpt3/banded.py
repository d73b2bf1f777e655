"""The largest model with a band of 16 tokens in every second layer, at equal steps.

Paper: Brown et al. 2020, section 2.1: dense and locally banded layers alternate; no loss is given for either.
Expected: as the dense model: 0.52 right with 16 examples, 3.09 bits per byte (three seeds).
Time: about 60 seconds on 1 core.
Command: gptjax train experiments/gpt3/banded.py
"""

from dataclasses import replace

from experiments.gpt3.large import config as large
from gptjax.stages.pretrain import PretrainConfig


def config() -> PretrainConfig:
    """The configuration of the run."""
    return replace(large(), model=replace(large().model, attention_band=16))
