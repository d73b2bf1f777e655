"""PPO with three KL coefficients, with and without ptx, three seeds, and what each costs.

Command: gptjax sweep experiments/alignment_tax/sweep.py --jobs 2
"""

from experiments.alignment_tax.compare import COEFFICIENTS
from gptjax.sweeps.plan import SweepConfig

HERE = "experiments/alignment_tax"


def sweep() -> SweepConfig:
    """Every run of README.md."""
    runs = ",".join(f"{name}={{runs}}/alignment_tax/{name}-{{seed}}" for name in COEFFICIENTS)
    return SweepConfig(
        arms={
            **{
                f"alignment_tax/{name}": f"{HERE}/ppo.py --kl-coef {kl} --ptx-coef {ptx}"
                for name, (kl, ptx) in COEFFICIENTS.items()
            },
            "alignment_tax/compare": f"{HERE}/compare.py --ppo {runs}",
        },
        baseline="alignment_tax/kl_0.08_ptx_0",
    )
