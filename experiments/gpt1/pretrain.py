"""GPT-1 in small: language modelling on tweets, reviews and editorials.

Paper: Radford et al. 2018, section 4.1; the published model has 12 layers of width 768 and read BooksCorpus.
Expected: 2.195 bits per held-out byte (three seeds), where xz needs 2.64.
Time: 4 minutes on one core.
Command: gptjax train experiments/gpt1/pretrain.py
"""

from gptjax.models.families import gpt1
from gptjax.stages.pretrain import PretrainConfig
from gptjax.training.optimizers import OptimizerConfig


def config() -> PretrainConfig:
    """The configuration of the run."""
    return PretrainConfig(
        model=gpt1("117M", vocab_size=2048, context_length=64, width=128, layers=2, heads=2, loop="unroll"),
        corpora={"ratings": 1.0},
        length=64,
        batch_size=32,
        steps=1200,
        optimizer=OptimizerConfig(
            kind="muon", learning_rate=3e-3, muon_learning_rate=0.02, warmup_steps=30, weight_decay=0.01
        ),
        save_every=400,
        eval_every=400,
        heldout_bytes=100_000,
    )
