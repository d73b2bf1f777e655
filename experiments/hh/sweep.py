"""Does labelling in rounds beat labelling at once? When do a teacher and a judge of its own kind part?

Does preference-model pretraining help? Its pairs must lie in runs/hh/arguments.jsonl, see README.md.

Figures: heldout.gold.round-3.elo of hh/online, and what else README.md lists.
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
            **{f"hh/{half}_half": f"experiments/hh/{half}_half.py" for half in ("first", "second")},
            "hh/robustness": "experiments/hh/robustness.py --reward {runs}/hh/first_half-{seed} "
            "--tracking.gold {runs}/hh/second_half-{seed}",
            "hh/arguments": "experiments/hh/arguments.py",
            "hh/few_ratings": "experiments/hh/few_ratings.py",
            "hh/after_arguments": "experiments/hh/few_ratings.py --base {runs}/hh/arguments-{seed}",
        },
        baseline="hh/online",
    )
