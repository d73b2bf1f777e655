"""Code from a model of prose, or from scratch, three seeds.

Command: gptjax sweep experiments/codex/sweep.py
"""

from gptjax.sweeps.plan import SweepConfig


def sweep() -> SweepConfig:
    """Every run of README.md."""
    return SweepConfig(
        arms={
            "gpt2/large": "experiments/gpt2/large.py",
            "codex/scratch": (
                "experiments/codex/scratch.py --tokenizer {runs}/gpt2/large-{seed}/model/tokenizer.model"
            ),
            "codex/finetune": "experiments/codex/finetune.py --base {runs}/gpt2/large-{seed}",
        },
        baseline="codex/scratch",
    )
