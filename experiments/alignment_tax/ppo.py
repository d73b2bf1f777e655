"""The quickstart's PPO measured along the way: reward, held-out text, chat questions.

Paper: Ouyang et al. 2022, table 14 and figures 33 and 34: alignment costs skills; a penalty on the divergence
does not bring them back, the gradient of pretraining text does.
Expected: without ptx the loss on held-out text rises with the distance; with it hardly.
Time: the quickstart's PPO and eight measurements.
Command: gptjax train experiments/alignment_tax/ppo.py
"""

from dataclasses import replace

from experiments.quickstart import config as quickstart
from gptjax.stages.ppo import PpoConfig
from gptjax.stages.tracking import TrackingConfig


def config() -> PpoConfig:
    """The configuration of the run; the sweep sets `kl_coef` and `ptx_coef`."""
    return replace(
        quickstart().ppo,
        policy="runs/quickstart/finetune",
        reward="runs/quickstart/reward",
        kl_limit=None,
        dialogues={},  # with ptx_coef it is the text alone that is kept
        tracking=TrackingConfig(every=3, replies=True, answer_tokens=48),
        eval_prompts=128,
        eval_bytes=15_000,
    )
