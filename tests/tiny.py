"""A road small enough to run in tests: real text, a model of two narrow layers, a few steps of each stage."""

from gptjax.generation.sampling import SamplingConfig
from gptjax.models.transformer import DecoderConfig
from gptjax.stages.finetune import FinetuneConfig
from gptjax.stages.ppo import PpoConfig
from gptjax.stages.pretrain import PretrainConfig
from gptjax.stages.reward import RewardConfig
from gptjax.stages.road import RoadConfig
from gptjax.training.optimizers import OptimizerConfig

TEXT = {"pydoc": 0.5, "ratings": 0.5}
ADAM = OptimizerConfig(learning_rate=1e-3)


def config() -> RoadConfig:
    """The configuration of the run."""
    return RoadConfig(
        pretrain=PretrainConfig(
            model=DecoderConfig(vocab_size=1024, context_length=256, width=16, layers=2, heads=2),
            corpora=TEXT,
            length=32,
            batch_size=8,
            steps=6,
            optimizer=ADAM,
            heldout_bytes=2000,
            save_every=2,
        ),
        finetune=FinetuneConfig(
            dialogues={"ratings": 1.0}, length=192, batch_size=8, steps=6, optimizer=ADAM, save_every=2
        ),
        reward=RewardConfig(length=224, batch_size=4, groups=24, optimizer=ADAM, save_every=2),
        ppo=PpoConfig(
            sampling=SamplingConfig(max_new_tokens=8),
            prompt_length=64,
            iterations=6,
            batch_size=8,
            minibatches=2,
            ptx_coef=1.0,
            ptx_length=32,
            corpora=TEXT,
            optimizer=ADAM,
            value_optimizer=ADAM,
            save_every=2,
            eval_prompts=8,
            eval_bytes=2000,
        ),
    )
