"""What PPO costs elsewhere, by its KL and ptx coefficients.

Paper: Ouyang et al. 2022, table 14 and figures 33 and 34.
Expected: the text loss rises less with ptx, at every KL coefficient.
Time: seconds, after the six runs of seed 0.
Command: gptjax train experiments/alignment_tax/compare.py
"""

from gptjax.evaluation.alignment_tax import AlignmentTaxConfig

COEFFICIENTS = {f"kl_{kl}_ptx_{ptx}": (kl, ptx) for ptx in ("0", "0.5") for kl in ("0", "0.08", "0.32")}


def config() -> AlignmentTaxConfig:
    """The configuration of the measurement, of the runs of seed 0."""
    return AlignmentTaxConfig(ppo={name: f"runs/alignment_tax/{name}-0" for name in COEFFICIENTS})
