"""The three rungs on text that none of them was trained on: the language reference of Python.

Paper: Radford et al. 2019, table 3: every zero-shot figure improves with every size.
Expected: perplexity per byte falls with every size (three seeds: 16.8, 15.3, 15.0).
Time: about 15 seconds on 1 core, after the three rungs.
Command: gptjax train experiments/gpt2/zero_shot.py
"""

from gptjax.evaluation.zero_shot import ZeroShotConfig


def config() -> ZeroShotConfig:
    """The configuration of the measurement."""
    return ZeroShotConfig(
        models=("runs/gpt2/small", "runs/gpt2/medium", "runs/gpt2/large"),
        text=("pydoc",),
        text_bytes=100_000,
        length=128,
    )
