"""The same model of source code, going on from one that has read prose.

Paper: Chen et al. 2021, section 3: starting from GPT-3 converges faster and ends no better than from scratch.
Expected: ahead from the first (three seeds: 4.00 nats per token after 50 steps, 4.42 from scratch) and, in a
    run as short as this, still at the end (2.55 bits per byte); the paper's equal end is not reached.
Time: about 60 seconds on 1 core, after experiments/gpt2/large.py.
Command: gptjax train experiments/codex/finetune.py
"""

from dataclasses import replace

from experiments.codex.scratch import config as scratch
from gptjax.stages.pretrain import PretrainConfig


def config() -> PretrainConfig:
    """The configuration of the run."""
    return replace(scratch(), base="runs/gpt2/large", tokenizer=None)
