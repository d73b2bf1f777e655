"""GRPO in RLOO's place: rewards standardised within each group, every reply weighing the same.

Paper: Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300), section 4.1.
Expected: RLOO's gain, less where the rewards of a group are close to each other.
Time: that of rloo.py.
Command: gptjax train experiments/instructgpt/grpo.py
"""

from dataclasses import replace

from experiments.instructgpt.rloo import config as base


def config():
    """The configuration of the run."""
    return replace(base(), estimator="grpo")
