"""Rankings by a synthetic labeler: the quickstart's reward model ranks four replies of its fine-tuned policy.

Paper: Gao et al. 2022 (arXiv 2210.10760), section 2.2: a gold reward model stands for people, and labels
without noise.
Expected: some 1,200 rankings, a sixth of them held out by the reward stage.
Time: 5,120 replies.
Command: gptjax train experiments/gao2022/labels.py
"""

from gptjax.generation.sampling import SamplingConfig
from gptjax.stages.gold_labels import GoldLabelsConfig


def config() -> GoldLabelsConfig:
    """The configuration of the run."""
    return GoldLabelsConfig(
        policy="runs/quickstart/finetune",
        gold="runs/quickstart/reward",
        sampling=SamplingConfig(max_new_tokens=32),
        prompt_length=32,
        replies=4,
        asked=1280,
        batch_size=32,
    )
