"""The smallest of three GPT-3 models.

Paper: Brown et al. 2020, section 2 and figure 1.2 (larger models make more of the examples in their context).
Expected: 0.10 right without an example, 0.27 with 16; 3.57 bits per byte of Shakespeare (three seeds).
Time: about 20 seconds on 1 core.
Command: gptjax train experiments/gpt3/small.py
"""

from dataclasses import replace

from experiments.gpt3.large import config as large
from gptjax.stages.pretrain import PretrainConfig


def config() -> PretrainConfig:
    """The configuration of the run."""
    return replace(large(), model=replace(large().model, width=16, layers=1))
