"""A preference model on pairs of arguments, before it meets the ratings: preference-model pretraining.

Paper: Bai et al. 2022 (HH, arXiv 2204.05862) and Askell et al. 2021 (arXiv 2112.00861), section 4: a model
that first learns other, larger preferences needs fewer of those that matter. Data: UKPConvArg1, which
`python experiments/external_data.py runs/hh/arguments.jsonl` writes as JSONL.
Expected: 0.71 on held-out arguments; few_ratings.py after it is right in 0.57 of the pairs, without it in
0.60 (three seeds).
Time: 4 minutes beside another run on two cores.
Command: gptjax train experiments/hh/arguments.py
"""

from dataclasses import replace

from experiments.quickstart import config as quickstart
from gptjax.stages.reward import RewardConfig


def config() -> RewardConfig:
    """The configuration of the run."""
    return replace(
        quickstart().reward,
        base="runs/quickstart/finetune",
        source="runs/hh/arguments.jsonl",
        margin_scale=0.0,
        length=256,
        batch_size=24,
    )
