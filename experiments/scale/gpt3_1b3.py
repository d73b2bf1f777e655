"""GPT-3 1.3B, the base of InstructGPT's smallest policy.

Paper: Brown et al. 2020, table 2.1 and appendix B.
Expected: the plan in README.md; not trained here.
Time: not measured; the plan gives its bounds.
Command: gptjax plan experiments/scale/gpt3_1b3.py --topology h100x64
"""

from dataclasses import replace

from experiments.scale.gpt3_175b import config as largest
from gptjax.models.families import gpt3
from gptjax.sharding.mesh import MeshConfig
from gptjax.stages.pretrain import PretrainConfig
from gptjax.training.optimizers import OptimizerConfig


def config() -> PretrainConfig:
    """The configuration of the run: batches of a million tokens."""
    return replace(
        largest(),
        model=gpt3("1.3B", vocab_size=50_304, compute_dtype="bfloat16", remat="full"),
        batch_size=512,
        accumulate=1,
        steps=286_102,
        optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=358, decay_steps=247_955),
        mesh=MeshConfig(fsdp=64),
    )
