"""Accuracy by the number K of examples in the context, for the three sizes and the banded model.

Paper: Brown et al. 2020, figures 1.2 and 3.10: accuracy rises with K, and more so in larger models.
Expected: the largest is right in 0.10, 0.33, 0.33, 0.39, 0.49 and 0.52 of the questions (three seeds).
Time: about 40 seconds on 1 core, after the four models.
Command: gptjax train experiments/gpt3/in_context.py
"""

from gptjax.evaluation.zero_shot import ZeroShotConfig


def config() -> ZeroShotConfig:
    """The configuration of the measurement."""
    return ZeroShotConfig(
        models=("runs/gpt3/small", "runs/gpt3/medium", "runs/gpt3/large", "runs/gpt3/banded"),
        task="majority",
        shots=(0, 1, 2, 4, 8, 16),
        questions=200,
        length=64,
    )
