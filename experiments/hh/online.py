"""Three rounds of labelling and alignment of the quickstart's assistant, its reward model being the labeler.

Paper: Bai et al. 2022 (HH, arXiv 2204.05862), on iterated online training; people and far more labels there.
Expected: later rounds beat earlier ones, and the last one the static control at as many labels (static.py).
Time: 5 minutes beside another run on two cores, of static.py 3.
Command: gptjax train experiments/hh/online.py --rivals static=runs/hh/static
"""

from experiments.quickstart import constant, muon
from gptjax.generation.sampling import SamplingConfig
from gptjax.stages.labels import LabelerConfig
from gptjax.stages.online import OnlineConfig
from gptjax.stages.ppo import PpoConfig
from gptjax.stages.reward import RewardConfig


def config() -> OnlineConfig:
    """The configuration of the run."""
    return OnlineConfig(
        policy="runs/quickstart/finetune",
        rounds=3,
        prompts=160,
        replies=4,
        labeler=LabelerConfig(reward="runs/quickstart/reward", temperature=2.0),
        reward=RewardConfig(
            length=96,
            batch_size=8,
            epochs=2,
            optimizer=muon(learning_rate=1e-3, muon_learning_rate=0.01, warmup_steps=5, final_fraction=0.0),
        ),
        ppo=PpoConfig(
            sampling=SamplingConfig(max_new_tokens=32),
            prompt_length=32,
            iterations=12,
            batch_size=64,
            minibatches=2,
            kl_coef=0.05,
            corpora={},
            ema_decay=0.8,
            optimizer=constant(learning_rate=3e-4, warmup_steps=2),
            value_optimizer=constant(learning_rate=5e-4),
        ),
    )
