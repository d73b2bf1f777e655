"""A proxy: a reward model that knows the gold reward model by some of its labels alone.

Paper: Gao et al. 2022 (arXiv 2210.10760), sections 3.2 and 3.3: proxies by size and by data.
Expected: held-out accuracy rises with the rankings and with the layers.
Time: two passes over 1,000 rankings of four replies.
Command: gptjax train experiments/gao2022/proxy.py
"""

from experiments.quickstart import muon
from gptjax.stages.reward import RewardConfig


def config() -> RewardConfig:
    """The configuration of the run; the sweep lowers `at_most` and `layers`."""
    return RewardConfig(
        base="runs/quickstart/finetune",
        source="runs/gao2022/labels/preferences.jsonl",
        at_most=1000,
        length=128,
        batch_size=8,
        epochs=2,
        optimizer=muon(learning_rate=1e-3, muon_learning_rate=0.01, warmup_steps=5, final_fraction=0.0),
    )
