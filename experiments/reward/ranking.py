"""A reward model on people's ratings, from the largest rung of GPT-2.

Paper: Stiennon et al. 2020 and Bai et al. 2022, on accuracy against data and model size; Ouyang et al. 2022,
section 3.5, for the loss.
Expected: 0.649 of all held-out pairs right (three seeds).
Time: 30 to 160 seconds beside another run on two cores.
Command: gptjax train experiments/reward/ranking.py --base runs/gpt2/large
"""

from gptjax.stages.reward import RewardConfig
from gptjax.training.optimizers import OptimizerConfig


def config() -> RewardConfig:
    """The configuration of the run."""
    return RewardConfig(
        base="runs/gpt2/large",
        groups=2330,  # one pass over the rated texts
        k_min=7,
        length=128,
        batch_size=6,
        optimizer=OptimizerConfig(
            kind="muon",
            learning_rate=1e-3,
            muon_learning_rate=0.01,
            warmup_steps=10,
            final_fraction=0.0,
            weight_decay=0.05,
        ),
    )
