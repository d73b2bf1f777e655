"""Gold reward against distance: best-of-n and PPO under each proxy, with fits of alpha and beta.

Paper: Gao et al. 2022 (arXiv 2210.10760), section 3.1 and figure 1: d (alpha - beta d) for best-of-n,
d (alpha - beta ln d) for reinforcement learning, with d = sqrt(KL).
Expected: beta falls with the data and the size of the proxy; best-of-n needs less KL than PPO for the same
gold reward.
Time: 4,096 replies, each read by six reward models.
Command: gptjax train experiments/gao2022/curves.py
"""

from gptjax.evaluation.gold_curves import GoldCurvesConfig
from gptjax.generation.sampling import SamplingConfig

PROXIES = ("prompts_100", "prompts_300", "prompts_1000", "layers_1", "layers_2")


def config() -> GoldCurvesConfig:
    """The configuration of the measurement, of the runs of seed 0."""
    return GoldCurvesConfig(
        policy="runs/quickstart/finetune",
        gold="runs/quickstart/reward",
        proxies={name: f"runs/gao2022/proxy_{name}-0" for name in PROXIES},
        ppo={name: f"runs/gao2022/ppo_{name}-0" for name in PROXIES},
        sampling=SamplingConfig(max_new_tokens=32),
        prompt_length=32,
        asked=64,
        n=64,
    )
