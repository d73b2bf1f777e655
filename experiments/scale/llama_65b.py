"""LLaMA-65B, to be planned: 1.4 trillion tokens in batches of 4.2 million.

Paper: Touvron et al. 2023, arXiv 2302.13971, tables 1 and 2, section 2.3.
Expected: the plan in README.md; not trained here.
Time: not measured; the plan gives its bounds.
Command: gptjax plan experiments/scale/llama_65b.py --topology h100x256
"""

from gptjax.models.families import llama
from gptjax.sharding.mesh import MeshConfig
from gptjax.stages.pretrain import PretrainConfig
from gptjax.training.optimizers import OptimizerConfig


def config() -> PretrainConfig:
    """The configuration of the run."""
    return PretrainConfig(
        model=llama("65B", compute_dtype="bfloat16", remat="full"),
        corpora={
            "corpora/common_crawl": 0.67,
            "corpora/c4": 0.15,
            "corpora/github": 0.045,
            "corpora/wikipedia": 0.045,
            "corpora/books": 0.045,
            "corpora/arxiv": 0.025,
            "corpora/stack_exchange": 0.02,
        },
        length=2048,
        batch_size=2048,
        accumulate=4,
        loss_chunk=4096,
        steps=333_786,
        optimizer=OptimizerConfig(learning_rate=1.5e-4, warmup_steps=2000),
        mesh=MeshConfig(fsdp=32, tensor=8),
    )
