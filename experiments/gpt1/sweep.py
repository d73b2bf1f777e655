"""Pre-training and the auxiliary loss of GPT-1: four arms on one pretrained model, three seeds.

Command: gptjax sweep experiments/gpt1/sweep.py
"""

from gptjax.sweeps.plan import SweepConfig


def sweep() -> SweepConfig:
    """Every run of README.md."""
    return SweepConfig(
        arms={
            "gpt1/pretrain": "experiments/gpt1/pretrain.py",
            **{
                f"gpt1/{arm}": f"experiments/gpt1/{arm}.py --base {{runs}}/gpt1/pretrain-{{seed}}"
                for arm in (
                    "finetune",
                    "finetune_no_language",
                    "finetune_untrained",
                    "finetune_untrained_no_language",
                )
            },
        },
    )
