"""Does labelling in rounds beat labelling at once? Three rounds, and two controls, three seeds.

Command: gptjax sweep experiments/hh/sweep.py
"""

from gptjax.sweeps.plan import SweepConfig


def sweep() -> SweepConfig:
    """Every run of README.md."""
    controls = "static={runs}/hh/static-{seed},static_short={runs}/hh/static_short-{seed}"
    return SweepConfig(
        arms={
            "hh/static": "experiments/hh/static.py",
            "hh/static_short": "experiments/hh/static.py --ppo.iterations 4",
            "hh/online": f"experiments/hh/online.py --rivals {controls}",
        },
        baseline="hh/static",
    )
