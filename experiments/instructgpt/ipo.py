"""IPO: a margin to reach in place of one that grows for ever.

Paper: Azar et al. 2023 (arXiv 2310.12036), equation 17, per token.
Expected: a smaller distance from the reference than DPO's at a similar accuracy.
Time: that of dpo.py.
Command: gptjax train experiments/instructgpt/ipo.py
"""

from dataclasses import replace

from experiments.instructgpt.dpo import config as base


def config():
    """The configuration of the run."""
    return replace(base(), loss="ipo")
