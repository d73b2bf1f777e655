"""InstructGPT's PPO-ptx with a policy of 1.3B and a reward model and critic of "6B".

256,000 episodes in batches of 512 and minibatches of 64, and eight rows of pretraining text an episode. The
policy's learning rate is a choice: the paper gives the range that was tried.

Paper: Ouyang et al. 2022, section 3.5 and appendix C.4.
Expected: the plan in README.md; not trained here.
Time: not measured; the plan gives its bounds.
Command: gptjax plan experiments/scale/instructgpt_ppo.py --topology h100x64
"""

from gptjax.generation.sampling import SamplingConfig
from gptjax.sharding.mesh import MeshConfig
from gptjax.stages.ppo import PpoConfig
from gptjax.training.optimizers import OptimizerConfig


def config() -> PpoConfig:
    """The configuration of the run."""
    return PpoConfig(
        policy="runs/scale/instructgpt_sft",
        reward="runs/scale/instructgpt_reward",
        prompts="corpora/prompts.jsonl",
        prompt_length=1024,
        sampling=SamplingConfig(max_new_tokens=1024),
        iterations=500,
        batch_size=512,
        minibatches=8,
        kl_coef=0.02,
        ptx_coef=27.8,
        ptx_rows=512,
        ptx_length=2048,
        corpora={"corpora/common_crawl": 1.0},
        optimizer=_constant(8e-6),
        value_optimizer=_constant(9e-6),
        mesh=MeshConfig(fsdp=64),
    )


def _constant(learning_rate: float) -> OptimizerConfig:
    """A constant rate after ten iterations of warm-up from a tenth."""
    return OptimizerConfig(
        learning_rate=learning_rate, schedule="constant", warmup_steps=80, warmup_from=0.1, weight_decay=0.0
    )
