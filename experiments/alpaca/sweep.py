"""Alpaca in small, three seeds. The base, runs/smollm2, is imported once: see README.md.

Command: gptjax sweep experiments/alpaca/sweep.py
"""

from gptjax.sweeps.plan import SweepConfig


def sweep() -> SweepConfig:
    """Every run of README.md."""
    return SweepConfig(
        arms={"alpaca/instructions": "experiments/alpaca/instructions.py"},
    )
