"""The quickstart's assistant shown how sums are answered, and some of the answers, for grpo_answers.py.

Paper: Cobbe et al. 2021 (GSM8K, arXiv 2110.14168), whose form of answers it is, in small.
Expected: replies end in "####" and a number, some of which are right.
Time: 18 seconds on two cores.
Command: gptjax train experiments/instructgpt/sums.py
"""

from experiments.quickstart import constant
from gptjax.stages.finetune import FinetuneConfig


def config() -> FinetuneConfig:
    """The configuration of the run."""
    return FinetuneConfig(
        base="runs/quickstart/finetune",
        dialogues={"sums": 1.0},
        length=128,
        batch_size=8,
        steps=100,
        optimizer=constant(learning_rate=1e-3),
    )
