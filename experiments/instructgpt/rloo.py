"""The quickstart's assistant aligned by RLOO: PPO's place without its critic.

Paper: Ahmadian et al. 2024 (RLOO, arXiv 2402.14740), which finds it better than PPO at less memory.
Expected: a gain in lexicon score like PPO's at the same divergence.
Time: less than the quickstart's PPO: as many replies, one model less to train and no text rows.
Command: gptjax train experiments/instructgpt/rloo.py
"""

from experiments.quickstart import TEXT, constant
from gptjax.generation.sampling import SamplingConfig
from gptjax.stages.grouped import GroupedConfig


def config() -> GroupedConfig:
    """The configuration of the run."""
    return GroupedConfig(
        policy="runs/quickstart/finetune",
        reward="runs/quickstart/reward",
        sampling=SamplingConfig(max_new_tokens=32),
        prompt_length=32,
        iterations=24,
        batch_size=64,
        group_size=4,
        minibatches=2,
        kl_coef=0.08,
        corpora=TEXT,
        optimizer=constant(learning_rate=3e-4, warmup_steps=2),
        save_every=5,
    )
