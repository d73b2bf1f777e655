"""The largest rung of a ladder of three GPT-2 models, at equal tokens.

Paper: Radford et al. 2019, table 2 (four sizes of one architecture) and table 3 (zero-shot figures by size).
Expected: bits per byte of held-out Shakespeare below those of the smaller rungs (three seeds: 2.73).
Time: about 60 seconds on 1 core.
Command: gptjax train experiments/gpt2/large.py
"""

from gptjax.models.families import gpt2
from gptjax.stages.pretrain import PretrainConfig
from gptjax.training.optimizers import OptimizerConfig


def config() -> PretrainConfig:
    """The configuration of the run."""
    return PretrainConfig(
        model=gpt2("124M", vocab_size=1024, context_length=128, width=96, layers=4, heads=4, loop="unroll"),
        corpora={"shakespeare": 0.5, "ratings": 0.5},
        length=128,
        batch_size=8,
        steps=300,
        optimizer=OptimizerConfig(kind="muon", learning_rate=3e-3, muon_learning_rate=0.02, warmup_steps=20),
        eval_every=50,
        heldout_bytes=100_000,
        compressors=False,
    )
