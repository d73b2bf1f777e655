"""GPT-3's sizes, band and batch ramp, and what the sizes learn from the context, three seeds.

Command: gptjax sweep experiments/gpt3/sweep.py
"""

from gptjax.sweeps.plan import SweepConfig

MEASURED = ("small", "medium", "large", "banded")


def sweep() -> SweepConfig:
    """Every run of README.md."""
    models = ",".join(f"{{runs}}/gpt3/{arm}-{{seed}}" for arm in MEASURED)
    return SweepConfig(
        arms={
            **{f"gpt3/{arm}": f"experiments/gpt3/{arm}.py" for arm in (*MEASURED, "no_ramp")},
            "gpt3/in_context": f"experiments/gpt3/in_context.py --models {models}",
        },
        baseline="gpt3/large",
    )
