"""Does pre-training help? BERT on labelled texts, pretrained and not, three seeds.

Command: gptjax sweep experiments/bert/sweep.py
"""

from gptjax.sweeps.plan import SweepConfig


def sweep() -> SweepConfig:
    """Every run of README.md."""
    return SweepConfig(
        arms={
            "bert/pretrain": "experiments/bert/pretrain.py",
            "bert/sentiment": "experiments/bert/sentiment.py --base {runs}/bert/pretrain-{seed}",
            "bert/sentiment_untrained": (
                "experiments/bert/sentiment_untrained.py --base {runs}/bert/pretrain-{seed}"
            ),
        },
    )
