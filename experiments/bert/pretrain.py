"""BERT in small: hidden words and next sentences on plays, reviews and editorials.

Paper: Devlin et al. 2018, section 3.1; "BERT base" has 12 layers of width 768 and read 3.3 billion words.
Expected: TODO
Time: TODO
Command: gptjax train experiments/bert/pretrain.py
"""

from gptjax.data.masking import MaskingConfig
from gptjax.models.families import bert
from gptjax.stages.masked import MaskedConfig
from gptjax.training.optimizers import OptimizerConfig


def config() -> MaskedConfig:
    """The configuration of the run."""
    return MaskedConfig(
        model=bert(
            "tiny",
            vocab_size=2048,
            context_length=64,
            width=128,
            layers=2,
            heads=2,
            dropout=0.0,
            loop="unroll",
        ),
        corpora={"ratings": 0.7, "shakespeare": 0.3},
        masking=MaskingConfig(max_predictions=10, copies=2),
        length=64,
        batch_size=32,
        steps=400,
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="linear", warmup_steps=40, weight_decay=0.01),
        save_every=200,
        eval_every=100,
        heldout_bytes=100_000,
    )
