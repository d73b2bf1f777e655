"""InstructGPT 1.3B before PPO: demonstrations with a tenth of pretraining text.

Paper: Ouyang et al. 2022, section 3.5 and appendix C.3.
Expected: the plan in README.md; not trained here.
Time: not measured; the plan gives its bounds.
Command: gptjax plan experiments/scale/instructgpt_sft.py --topology h100x32
"""

from gptjax.sharding.mesh import MeshConfig
from gptjax.stages.finetune import FinetuneConfig
from gptjax.training.optimizers import OptimizerConfig


def config() -> FinetuneConfig:
    """The configuration of the run: two passes over 12,725 demonstrations, one a row."""
    return FinetuneConfig(
        base="runs/scale/gpt3_1b3",
        dialogues={"corpora/demonstrations.jsonl": 0.9},
        text={"corpora/common_crawl": 0.1},
        dropout=0.2,
        length=2048,
        batch_size=32,
        steps=884,
        optimizer=OptimizerConfig(learning_rate=5e-6, weight_decay=0.0),
        mesh=MeshConfig(fsdp=32),
    )
