"""A model of source code from fresh parameters, with the tokenizer of the one that has read prose.

Paper: Chen et al. 2021, section 3: starting from GPT-3 converges faster and ends no better than from scratch.
Expected: behind the model that has read prose at every step (three seeds: 4.42 nats per token
    after 50 steps, 2.64 bits per byte at the end).
Time: about 60 seconds on 1 core, after experiments/gpt2/large.py.
Command: gptjax train experiments/codex/scratch.py
"""

from dataclasses import replace

from experiments.gpt2.large import config as large
from gptjax.stages.pretrain import PretrainConfig

VOCABULARY = 1047  # what tokens for code make of the 1,024 ids


def config() -> PretrainConfig:
    """The configuration of the run."""
    return replace(
        large(),
        model=replace(large().model, vocab_size=VOCABULARY),
        corpora={"stdlib": 1.0},
        tokenizer="runs/gpt2/large/model/tokenizer.model",
        code_tokens=True,
    )
