"""InstructGPT's reward model of "6B": 33,207 rankings of 4 to 9 replies, one pass.

Paper: Ouyang et al. 2022, section 3.5 and appendix C.2.
Expected: the plan in README.md; not trained here.
Time: not measured; the plan gives its bounds.
Command: gptjax plan experiments/scale/instructgpt_reward.py --topology h100x64
"""

from gptjax.sharding.mesh import MeshConfig
from gptjax.stages.reward import RewardConfig
from gptjax.training.optimizers import OptimizerConfig


def config() -> RewardConfig:
    """The configuration of the run: 64 prompts an update."""
    return RewardConfig(
        base="runs/scale/gpt3_6b",
        source="corpora/rankings.jsonl",
        length=2048,
        batch_size=64,
        optimizer=OptimizerConfig(learning_rate=9e-6, weight_decay=0.0),
        mesh=MeshConfig(fsdp=64),
    )
