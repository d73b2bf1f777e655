"""BERT in small: hidden words and next sentences on tweets, reviews, editorials and documentation.

Paper: Devlin et al. 2018, section 3.1; "BERT base" has 12 layers of width 768 and read 3.3 billion words.
Expected: 5.42 nats per hidden token of held-out ratings, 17 % right (three seeds); the frequencies of single
    tokens give 6.50 and 2.7 %. Next sentences are not learnt.
Time: 4 minutes on one core.
Command: gptjax train experiments/bert/pretrain.py
"""

from gptjax.data.masking import MaskingConfig
from gptjax.models.families import bert
from gptjax.stages.masked import MaskedConfig
from gptjax.training.optimizers import OptimizerConfig


def config() -> MaskedConfig:
    """The configuration of the run."""
    return MaskedConfig(
        model=bert("tiny", vocab_size=2048, context_length=64, dropout=0.0, loop="unroll"),
        corpora={"ratings": 0.9, "pydoc": 0.1},
        masking=MaskingConfig(max_predictions=10, copies=1),
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
