"""The middle rung of the ladder: a third of the largest one's parameters.

Paper: Radford et al. 2019, table 2 (four sizes of one architecture) and table 3 (zero-shot figures by size).
Expected: between the rungs beside it (three seeds: 2.83 bits per byte of held-out Shakespeare).
Time: about 30 seconds on 1 core.
Command: gptjax train experiments/gpt2/medium.py
"""

from dataclasses import replace

from experiments.gpt2.large import config as large
from gptjax.stages.pretrain import PretrainConfig


def config() -> PretrainConfig:
    """The configuration of the run."""
    return replace(large(), model=replace(large().model, width=64, layers=3))
