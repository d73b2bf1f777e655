"""GPT-2 with SwiGLU in place of GELU, its inner width two thirds of 4 D for the same parameters.

Paper: Touvron et al. 2023, section 2.2, which gives no ablation; Shazeer 2020.
Expected: no gain at this size and length (three seeds: 2.78 bits per byte of held-out Shakespeare, GPT-2
    2.73).
Time: about 60 seconds on 1 core.
Command: gptjax train experiments/llama/swiglu.py
"""

from dataclasses import replace

from experiments.gpt2.large import config as gpt2
from gptjax.stages.pretrain import PretrainConfig


def config() -> PretrainConfig:
    """The configuration of the run."""
    return replace(gpt2(), model=replace(gpt2().model, activation="swiglu", mlp_width=256))
