"""PPO on a proxy with nothing to hold it back, the gold reward measured along the way.

Paper: Gao et al. 2022 (arXiv 2210.10760), section 3: no penalty on the divergence.
Expected: the proxy's reward rises all the way; the gold reward rises less, turns, and falls, the sooner the
worse the proxy is.
Time: 32 iterations of 64 replies, measured 8 times.
Command: gptjax train experiments/gao2022/ppo.py
"""

from experiments.quickstart import TEXT, constant
from gptjax.generation.sampling import SamplingConfig
from gptjax.stages.ppo import PpoConfig
from gptjax.stages.tracking import TrackingConfig


def config() -> PpoConfig:
    """The configuration of the run; the sweep names the proxies."""
    return PpoConfig(
        policy="runs/quickstart/finetune",
        reward="runs/gao2022/proxy",
        sampling=SamplingConfig(max_new_tokens=32),
        prompt_length=32,
        iterations=32,
        batch_size=64,
        minibatches=2,
        kl_coef=0.0,
        corpora=TEXT,
        ema_decay=0.0,  # what is measured is the policy itself
        optimizer=constant(learning_rate=3e-4, warmup_steps=2),
        value_optimizer=constant(learning_rate=5e-4),
        tracking=TrackingConfig(every=4, replies=True, gold="runs/quickstart/reward"),
        eval_prompts=128,
        eval_bytes=15_000,
    )
