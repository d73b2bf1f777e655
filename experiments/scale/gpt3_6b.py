"""GPT-3 6.7B, the base of InstructGPT's reward model of "6B".

Paper: Brown et al. 2020, table 2.1 and appendix B; Ouyang et al. 2022, appendix C.2.
Expected: the plan in README.md; not trained here.
Time: not measured; the plan gives its bounds.
Command: gptjax plan experiments/scale/gpt3_6b.py --topology h100x64
"""

from dataclasses import replace

from experiments.scale.gpt3_175b import config as largest
from gptjax.models.families import gpt3
from gptjax.sharding.mesh import MeshConfig
from gptjax.stages.pretrain import PretrainConfig
from gptjax.training.optimizers import OptimizerConfig


def config() -> PretrainConfig:
    """The configuration of the run: batches of two million tokens."""
    return replace(
        largest(),
        model=gpt3("6.7B", vocab_size=50_304, compute_dtype="bfloat16", remat="full"),
        batch_size=1024,
        accumulate=4,
        steps=143_051,
        optimizer=OptimizerConfig(learning_rate=1.2e-4, warmup_steps=179, decay_steps=123_978),
        mesh=MeshConfig(fsdp=64),
    )
