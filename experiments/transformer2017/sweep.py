"""The Transformer with label smoothing and without, three seeds.

Command: gptjax sweep experiments/transformer2017/sweep.py
"""

from gptjax.sweeps.plan import SweepConfig


def sweep() -> SweepConfig:
    """Every run of README.md."""
    return SweepConfig(
        arms={
            "transformer2017/translate": "experiments/transformer2017/translate.py",
            "transformer2017/no_smoothing": "experiments/transformer2017/no_smoothing.py",
        },
    )
