"""KTO: each reply is good or bad by itself.

Paper: Ethayarajh et al. 2024 (arXiv 2402.01306), which finds it as good as DPO.
Expected: an accuracy close to DPO's.
Time: that of dpo.py.
Command: gptjax train experiments/instructgpt/kto.py
"""

from dataclasses import replace

from experiments.instructgpt.dpo import config as base


def config():
    """The configuration of the run."""
    return replace(base(), loss="kto")
