"""GPT-2 with RMSNorm in place of LayerNorm.

Paper: Touvron et al. 2023, section 2.2, which gives no ablation; Zhang and Sennrich 2019.
Expected: the same loss by a simpler norm (three seeds: 2.73 bits per byte of held-out Shakespeare, as
    GPT-2).
Time: about 60 seconds on 1 core.
Command: gptjax train experiments/llama/rmsnorm.py
"""

from dataclasses import replace

from experiments.gpt2.large import config as gpt2
from gptjax.stages.pretrain import PretrainConfig


def config() -> PretrainConfig:
    """The configuration of the run."""
    return replace(gpt2(), model=replace(gpt2().model, norm="rmsnorm"))
