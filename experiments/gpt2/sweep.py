"""Three sizes of GPT-2 and their zero-shot figures, three seeds.

Command: gptjax sweep experiments/gpt2/sweep.py
"""

from gptjax.sweeps.plan import SweepConfig

RUNGS = ("small", "medium", "large")


def sweep() -> SweepConfig:
    """Every run of README.md."""
    models = ",".join(f"{{runs}}/gpt2/{rung}-{{seed}}" for rung in RUNGS)
    return SweepConfig(
        arms={
            **{f"gpt2/{rung}": f"experiments/gpt2/{rung}.py" for rung in RUNGS},
            "gpt2/zero_shot": f"experiments/gpt2/zero_shot.py --seed 0 --models {models}",
        },
    )
