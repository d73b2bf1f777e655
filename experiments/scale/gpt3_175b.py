"""GPT-3 175B, to be planned: 300 billion tokens in batches of 3.1 million.

The batch is full from the start (in the paper it grows over the first billions of tokens), and the vocabulary
is padded to 50,304 ids, so that it divides over `tensor`.

Paper: Brown et al. 2020, tables 2.1 and 2.2, appendix B.
Expected: the plan in README.md; not trained here.
Time: not measured; the plan gives its bounds.
Command: gptjax plan experiments/scale/gpt3_175b.py --topology h100x512
"""

from gptjax.models.families import gpt3
from gptjax.sharding.mesh import MeshConfig
from gptjax.stages.pretrain import PretrainConfig
from gptjax.training.optimizers import OptimizerConfig


def config() -> PretrainConfig:
    """The configuration of the run."""
    return PretrainConfig(
        model=gpt3("175B", vocab_size=50_304, compute_dtype="bfloat16", remat="full"),
        corpora={
            "corpora/common_crawl": 0.60,
            "corpora/webtext2": 0.22,
            "corpora/books1": 0.08,
            "corpora/books2": 0.08,
            "corpora/wikipedia": 0.03,
        },
        length=2048,
        batch_size=1536,
        accumulate=2,
        loss_chunk=4096,
        steps=95_367,
        optimizer=OptimizerConfig(learning_rate=6e-5, warmup_steps=119, decay_steps=82_652),
        mesh=MeshConfig(fsdp=64, tensor=8),
    )
