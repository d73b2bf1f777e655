"""Reward models against the size of the data and of the model, and four losses at the largest of both.

Command: gptjax sweep experiments/reward/sweep.py
"""

from gptjax.sweeps.plan import SweepConfig

FILE = "experiments/reward/ranking.py"
RUNGS = ("small", "medium", "large")
GROUPS = (290, 820, 2330)
LOSSES = {
    "margin": "--margin-scale 1.5",
    "plackett_luce": "--loss plackett_luce",
    "best_of_n": "--loss best_of_n",
}


def sweep() -> SweepConfig:
    """Every run of README.md."""
    on = f"{FILE} --base {{runs}}/gpt2"
    return SweepConfig(
        arms={
            **{f"gpt2/{rung}": f"experiments/gpt2/{rung}.py" for rung in RUNGS},
            **{
                f"reward/{rung}-{groups}": f"{on}/{rung}-{{seed}} --groups {groups}"
                for rung in RUNGS
                for groups in GROUPS
            },
            **{f"reward/{name}": f"{on}/large-{{seed}} {line}" for name, line in LOSSES.items()},
        },
        baseline="reward/large-2330",
    )
