"""Chinese to English: the Transformer of 2017 on the Python documentation.

Paper: Vaswani et al. 2017, sections 5 and 6, in small.
Expected: ?
Time: ?
Command: gptjax train experiments/transformer2017/translate.py
"""

from experiments.external_data import external
from gptjax.models.families import transformer
from gptjax.stages.translate import TranslateConfig
from gptjax.training.optimizers import OptimizerConfig

WIDTH, WARMUP = 128, 300


def config() -> TranslateConfig:
    """The configuration of the run."""
    return TranslateConfig(
        model=transformer(
            "base",
            vocab_size=2048,
            context_length=96,
            width=WIDTH,
            layers=2,
            heads=4,
            dropout=0.1,
            loop="unroll",
        ),
        pairs=external("zh_en"),
        source="zh",
        target="en",
        leave_out="`",
        lengths=(16, 32),
        batch_tokens=1024,
        steps=1500,
        average=5,
        save_every=100,
        optimizer=OptimizerConfig(
            schedule="noam",
            learning_rate=(WIDTH * WARMUP) ** -0.5,
            warmup_steps=WARMUP,
            b2=0.98,
            epsilon=1e-9,
            weight_decay=0.0,
            clip_norm=None,
        ),
    )
