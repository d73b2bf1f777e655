"""The largest model with the full batch from the first step, at equal tokens.

Paper: Brown et al. 2020, appendix B: the batch grows over the first tokens; no figures without.
Expected: 3.10 bits per byte of Shakespeare, as with the growing batch (three seeds).
Time: about 60 seconds on 1 core.
Command: gptjax train experiments/gpt3/no_ramp.py
"""

from dataclasses import replace

from experiments.gpt3.large import config as large
from gptjax.stages.pretrain import PretrainConfig


def config() -> PretrainConfig:
    """The configuration of the run."""
    return replace(large(), ramp=None, steps=404)
