"""The whole road on embedded real text, on two CPU cores.

Paper: the chain of InstructGPT (Ouyang et al. 2022) in small: pretraining, fine-tuning, K-way reward model,
PPO-ptx beside plain PPO.
Expected: the figures in experiments/README.md.
Time: 13 to 17 minutes on 2 cores.
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

TEXT = {"shakespeare": 0.40, "pydoc": 0.05, "ratings": 0.55}


def config() -> RoadConfig:
    """The configuration of the run."""
    return RoadConfig(
        pretrain=PretrainConfig(
            model=DecoderConfig(
                vocab_size=4096, context_length=256, width=192, layers=3, heads=3, loop="unroll"
            ),
            corpora=TEXT,
            length=128,
            batch_size=16,
            steps=300,
            optimizer=muon(learning_rate=3e-3, muon_learning_rate=0.02, warmup_steps=30),
            save_every=100,
            eval_every=100,
            heldout_bytes=400_000,
        ),
        finetune=FinetuneConfig(
            dialogues={"chatterbot": 0.82, "ratings": 0.14},
            text={"shakespeare": 0.02, "ratings": 0.02},
            rewordings=7,
            heldout_rows=256,
            length=128,
            batch_size=8,
            steps=700,
            optimizer=muon(learning_rate=2e-3, muon_learning_rate=0.01, warmup_steps=20),
            save_every=150,
        ),
        reward=RewardConfig(
            groups=2330,  # one pass over the rated texts
            k_min=7,  # the more replies are compared, the more is learnt from reading each once
            margin_scale=1.5,
            length=160,
            batch_size=6,
            optimizer=muon(learning_rate=1e-3, muon_learning_rate=0.01, warmup_steps=20, final_fraction=0.0),
            save_every=100,
        ),
        ppo=PpoConfig(
            sampling=SamplingConfig(max_new_tokens=32),
            prompt_length=32,
            iterations=24,
            batch_size=64,
            minibatches=2,
            kl_coef=0.08,
            kl_limit=18.0,  # some seeds go so far in half the time of others
            ptx_coef=0.5,
            corpora=TEXT,
            dialogues={"chatterbot": 1.0},  # as much as all text, so that the chat is not forgotten
            rewordings=7,
            ema_decay=0.8,
            optimizer=constant(learning_rate=3e-4, warmup_steps=2),
            value_optimizer=constant(learning_rate=5e-4),
            save_every=5,
        ),
    )


def muon(**changes) -> OptimizerConfig:
    """Muon for the hidden matrices; on this budget it needs about half the steps of AdamW."""
    return OptimizerConfig(kind="muon", weight_decay=0.05, **changes)


def constant(**changes) -> OptimizerConfig:
    """AdamW at a constant rate without decay, as InstructGPT's PPO (appendix C.4)."""
    return OptimizerConfig(schedule="constant", weight_decay=0.0, **changes)
