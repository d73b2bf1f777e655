"""Blanks from both sides, from the left, and together; a chat from the last; three seeds.

Command: gptjax sweep experiments/glm/sweep.py
"""

from gptjax.sweeps.plan import SweepConfig


def sweep() -> SweepConfig:
    """Every run of README.md."""
    return SweepConfig(
        arms={
            "glm/infill": "experiments/glm/infill.py",
            "glm/left_to_right": "experiments/glm/left_to_right.py",
            "glm/multitask": "experiments/glm/multitask.py",
            "glm/chat": "experiments/glm/chat.py --base {runs}/glm/multitask-{seed}",
        },
    )
