"""IPO: a margin to reach in place of one that grows for ever.

Paper: Azar et al. 2023 (arXiv 2310.12036), equation 17, per token.
Expected: at DPO's beta four times DPO's KL, since per token it asks for a margin of 5 nats; README.md.
Time: that of dpo.py.
Command: gptjax train experiments/instructgpt/ipo.py
"""

from dataclasses import replace

from experiments.instructgpt.dpo import config as base


def config():
    """The configuration of the run."""
    return replace(base(), loss="ipo")
