"""GLM-130B, to be planned: 400 billion tokens in batches of 8.7 million, without its instruction part.

The batch is full from the start; in the paper it grows over the first samples.

Paper: Zeng et al. 2022, arXiv 2210.02414, sections 2 and 3.
Expected: the plan in README.md; not trained here.
Time: not measured; the plan gives its bounds.
Command: gptjax plan experiments/scale/glm_130b.py --topology h100x256
"""

from gptjax.data.infilling import RESERVED
from gptjax.models.families import glm130b
from gptjax.sharding.mesh import MeshConfig
from gptjax.stages.infill import InfillConfig
from gptjax.training.optimizers import OptimizerConfig


def config() -> InfillConfig:
    """The configuration of the run; the stage adds the ids that mark blanks to the vocabulary."""
    return InfillConfig(
        model=glm130b(vocab_size=150_528 - RESERVED, compute_dtype="bfloat16", remat="full"),
        corpora={"corpora/english": 0.5, "corpora/chinese": 0.5},
        objectives={"document": 0.7, "token": 0.3},
        length=2048,
        batch_size=4224,
        accumulate=11,
        loss_chunk=4096,
        steps=46_240,
        optimizer=OptimizerConfig(learning_rate=8e-5, warmup_steps=231),
        mesh=MeshConfig(fsdp=32, tensor=8),
    )
