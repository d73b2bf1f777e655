"""The quickstart's assistant trained on its rankings by DPO, without a reward model.

Paper: Rafailov et al. 2023 (arXiv 2305.18290), in small: section 6 finds DPO at least as good as PPO.
Expected: held-out accuracy of the implicit reward above a coin; a higher lexicon score than the reference.
Time: two passes over the rankings for each epoch of the quickstart's reward model, and the replies that are
judged.
Command: gptjax train experiments/instructgpt/dpo.py
"""

from experiments.quickstart import TEXT, constant
from gptjax.generation.sampling import SamplingConfig
from gptjax.stages.policy_figures import JudgingConfig
from gptjax.stages.preference import PreferenceConfig


def config() -> PreferenceConfig:
    """The configuration of the run."""
    return PreferenceConfig(
        base="runs/quickstart/finetune",
        beta=0.1,
        groups=2330,
        k_min=7,
        length=160,
        batch_size=6,
        optimizer=constant(learning_rate=1e-4, warmup_steps=20),
        save_every=100,
        judging=JudgingConfig(
            reward="runs/quickstart/reward",
            sampling=SamplingConfig(max_new_tokens=32),
            prompt_length=32,
            corpora=TEXT,
        ),
    )
