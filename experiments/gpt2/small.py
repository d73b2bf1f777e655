"""The smallest rung of the ladder.

Paper: Radford et al. 2019, table 2 (four sizes of one architecture) and table 3 (zero-shot figures by size).
Expected: the worst of the three (three seeds: 3.05 bits per byte of held-out Shakespeare).
Time: about 20 seconds on 1 core.
Command: gptjax train experiments/gpt2/small.py
"""

from dataclasses import replace

from experiments.gpt2.large import config as large
from gptjax.stages.pretrain import PretrainConfig


def config() -> PretrainConfig:
    """The configuration of the run."""
    return replace(large(), model=replace(large().model, width=32, layers=2))
