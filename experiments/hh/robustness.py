"""PPO against a preference model of one half of the ratings, judged along the way by one of the other half.

Paper: Bai et al. 2022 (HH, arXiv 2204.05862), on robustness: the two scores rise together for some 150,000
samples; then the teacher's goes on rising and the judge's does not, later for larger models.
Expected: `tracked/reward` and `tracked/gold` rise together, the second 0.7 times as much (three seeds).
Time: 2 and a half minutes beside another run on two cores.
Command: gptjax train experiments/hh/robustness.py
"""

from dataclasses import replace

from experiments.instructgpt.ppo import config as ppo
from gptjax.stages.ppo import PpoConfig
from gptjax.stages.tracking import TrackingConfig


def config() -> PpoConfig:
    """The configuration of the run."""
    return replace(
        ppo(),
        reward="runs/hh/first_half",
        tracking=TrackingConfig(every=2, replies=True, gold="runs/hh/second_half"),
        iterations=20,
        kl_coef=0.001,  # the paper's, which hardly holds the policy back
    )
