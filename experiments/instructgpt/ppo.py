"""The quickstart's plain PPO in half its length: what the ablations of PPO are laid beside.

Paper: Ouyang et al. 2022, sections 3.5 and C.4; Ziegler et al. 2019; Stiennon et al. 2020.
Expected: the figures in README.md; a higher lexicon score than the reference.
Time: a minute and a half on one core.
Command: gptjax train experiments/instructgpt/ppo.py
"""

from dataclasses import replace

from experiments.quickstart import config as quickstart
from gptjax.stages.ppo import PpoConfig
from gptjax.stages.tracking import TrackingConfig


def config() -> PpoConfig:
    """The configuration of the run."""
    return replace(
        quickstart().ppo,
        policy="runs/quickstart/finetune",
        reward="runs/quickstart/reward",
        iterations=12,
        ptx_coef=0.0,
        kl_limit=None,  # an arm that goes far is to be seen going far
        eval_bytes=10_000,
        tracking=TrackingConfig(every=6, answer_tokens=48),
    )
