"""GRPO with a rule in the reward model's place: sums whose answers are checked.

Paper: Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300), section 4, on GSM8K; sums of digits here.
Expected: right replies to the sums of the training from some 70 to 84 %; README.md.
Time: 40 seconds on two cores.
Command: gptjax train experiments/instructgpt/grpo_answers.py
"""

from experiments.quickstart import constant
from gptjax.generation.sampling import SamplingConfig
from gptjax.stages.grouped import GroupedConfig


def config() -> GroupedConfig:
    """The configuration of the run."""
    return GroupedConfig(
        policy="runs/instructgpt/sums",
        reward="answers",
        prompts="sums",
        estimator="grpo",
        sampling=SamplingConfig(max_new_tokens=8),
        prompt_length=32,
        iterations=30,
        batch_size=128,
        group_size=8,
        minibatches=2,
        kl_coef=0.02,
        optimizer=constant(learning_rate=2e-4, warmup_steps=2),
        save_every=15,
    )
