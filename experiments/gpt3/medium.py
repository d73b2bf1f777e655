"""The middle one of three GPT-3 models.

Paper: Brown et al. 2020, section 2 and figure 1.2 (larger models make more of the examples in their context).
Expected: 0.09 right without an example, 0.51 with 16; 3.38 bits per byte of Shakespeare (three seeds).
Time: about 30 seconds on 1 core.
Command: gptjax train experiments/gpt3/medium.py
"""

from dataclasses import replace

from experiments.gpt3.large import config as large
from gptjax.stages.pretrain import PretrainConfig


def config() -> PretrainConfig:
    """The configuration of the run."""
    return replace(large(), model=replace(large().model, width=32))
