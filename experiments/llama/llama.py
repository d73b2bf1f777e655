"""LLaMA's block beside GPT-2's at equal parameters and tokens: rotary positions, SwiGLU, RMSNorm, no biases.

The output matrix stays tied: untied it would add a fifth to the parameters of so small a model.

Paper: Touvron et al. 2023, section 2.2.
Expected: better than GPT-2 by less than rotary positions alone (three seeds: 2.70 bits per byte of held-out
    Shakespeare, GPT-2 2.73, rotary 2.65).
Time: about 60 seconds on 1 core.
Command: gptjax train experiments/llama/llama.py
"""

from dataclasses import replace

from experiments.gpt2.large import config as gpt2
from gptjax.stages.pretrain import PretrainConfig


def config() -> PretrainConfig:
    """The configuration of the run."""
    model = replace(
        gpt2().model,
        positions="rotary",
        activation="swiglu",
        mlp_width=256,
        norm="rmsnorm",
        norm_epsilon=1e-6,
        bias=False,
    )
    return replace(gpt2(), model=model)
