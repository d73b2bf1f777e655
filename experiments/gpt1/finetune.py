"""Is a text positive or negative? The pretrained GPT-1, fine-tuned with language modelling beside the task.

Paper: Radford et al. 2018, section 3.2 (lambda 0.5) and table 5.
Expected: 0.684 of held-out texts right (three seeds), against 0.560 without pre-training; always the
    same answer gives 0.539.
Time: one minute on one core.
Command: gptjax train experiments/gpt1/finetune.py
"""

from gptjax.stages.classify import ClassifyConfig
from gptjax.training.optimizers import OptimizerConfig


def config() -> ClassifyConfig:
    """The configuration of the run."""
    return ClassifyConfig(
        base="runs/gpt1/pretrain",
        examples=2000,
        lm_weight=0.5,
        length=48,
        batch_size=32,
        steps=200,
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="linear", warmup_steps=20, weight_decay=0.01),
        save_every=200,
    )
