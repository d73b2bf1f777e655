"""Five proxies of the gold reward model, PPO on each, and the curves of both optimisers, three seeds.

Command: gptjax sweep experiments/gao2022/sweep.py --jobs 2
"""

from experiments.gao2022.curves import PROXIES
from gptjax.sweeps.plan import SweepConfig

HERE = "experiments/gao2022"
SMALLER = {
    "prompts_100": "--at-most 100",
    "prompts_300": "--at-most 300",
    "prompts_1000": "--at-most 1000",
    "layers_1": "--layers 1",
    "layers_2": "--layers 2",
}


def runs_of(kind: str) -> str:
    """`name=folder` of every proxy, or of PPO on it."""
    return ",".join(f"{name}={{runs}}/gao2022/{kind}_{name}-{{seed}}" for name in PROXIES)


def sweep() -> SweepConfig:
    """Every run of README.md."""
    labels = "--source {runs}/gao2022/labels-{seed}/preferences.jsonl"
    return SweepConfig(
        arms={
            "gao2022/labels": f"{HERE}/labels.py",
            **{f"gao2022/proxy_{name}": f"{HERE}/proxy.py {labels} {SMALLER[name]}" for name in PROXIES},
            **{
                f"gao2022/ppo_{name}": f"{HERE}/ppo.py --reward {{runs}}/gao2022/proxy_{name}-{{seed}}"
                for name in PROXIES
            },
            "gao2022/curves": f"{HERE}/curves.py --proxies {runs_of('proxy')} --ppo {runs_of('ppo')}",
        },
        baseline="gao2022/curves",
    )
