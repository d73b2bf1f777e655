"""The whole road on embedded real text, on two CPU cores.

Paper: the chain of InstructGPT (Ouyang et al. 2022), in small: GPT-2-style pretraining, fine-tuning,
K-way reward model, PPO-ptx.
Expected: see experiments/README.md for three seeds.
Time: about 12 minutes on 2 cores.
Command: ./launch.sh quickstart
"""

from gptjax.generation.sampling import SamplingConfig
from gptjax.models.transformer import DecoderConfig
from gptjax.stages.finetune import FinetuneConfig
from gptjax.stages.ppo import PpoConfig
from gptjax.stages.pretrain import PretrainConfig
from gptjax.stages.reward import RewardConfig
from gptjax.stages.road import RoadConfig
from gptjax.training.optimizers import OptimizerConfig

TEXT = {"shakespeare": 0.55, "pydoc": 0.05, "ratings": 0.40}


def config() -> RoadConfig:
    """The configuration of the run."""
    return RoadConfig(
        pretrain=PretrainConfig(
            model=DecoderConfig(
                vocab_size=4096, context_length=256, width=192, layers=4, heads=3, loop="unroll"
            ),
            corpora=TEXT,
            length=128,
            batch_size=16,
            steps=700,
            optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=30),
        ),
        finetune=FinetuneConfig(
            dialogues={"chatterbot": 0.6, "ratings": 0.4},
            rewordings=3,
            length=192,
            batch_size=8,
            steps=300,
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=20),
        ),
        reward=RewardConfig(
            length=160,
            batch_size=8,
            groups=2400,
            epochs=1,
            optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=20),
        ),
        ppo=PpoConfig(
            sampling=SamplingConfig(max_new_tokens=32),
            iterations=40,
            batch_size=64,
            minibatches=2,
            kl_coef=0.02,
            ptx_coef=1.0,
            corpora=TEXT,
            ema_decay=0.9,
            optimizer=OptimizerConfig(learning_rate=2e-4, schedule="constant", weight_decay=0.0),
            value_optimizer=OptimizerConfig(learning_rate=5e-4, schedule="constant", weight_decay=0.0),
        ),
    )
