"""ORPO: fine-tuning with a push off the worse reply, without a reference.

Paper: Hong et al. 2024 (arXiv 2403.07691).
Expected: an accuracy below DPO's, and the held-out text better kept.
Time: that of dpo.py.
Command: gptjax train experiments/instructgpt/orpo.py
"""

from dataclasses import replace

from experiments.instructgpt.dpo import config as base


def config():
    """The configuration of the run."""
    return replace(base(), loss="orpo")
