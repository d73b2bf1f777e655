"""The largest of three GPT-3 models, dense, on text and on lists that only the context explains.

Half of the rows are lists of pairs, each list with a digit of its own
(`gptjax/data/in_context.py`): text alone teaches a model of this size no in-context learning that could be
measured. As in the paper the batch grows over the first tokens, the learning rate falls to a tenth by tokens,
and documents are packed with a separator that attention crosses.

Paper: Brown et al. 2020, section 2 and appendix B.
Expected: 0.10 right without an example, 0.52 with 16; 3.10 bits per byte of Shakespeare (three seeds).
Time: about 60 seconds on 1 core.
Command: gptjax train experiments/gpt3/large.py
"""

from gptjax.models.families import gpt3
from gptjax.stages.pretrain import PretrainConfig
from gptjax.training.batch_ramp import BatchRamp
from gptjax.training.optimizers import OptimizerConfig


def config() -> PretrainConfig:
    """The configuration of the run."""
    return PretrainConfig(
        model=gpt3(
            "125M",
            vocab_size=512,
            context_length=64,
            width=64,
            layers=2,
            heads=4,
            attention_band=None,
            loop="unroll",
        ),
        corpora={"shakespeare": 0.25, "ratings": 0.25, "majority": 0.5},
        length=64,
        batch_size=16,
        ramp=BatchRamp(start=4, tokens=25_000, sizes=4),
        steps=440,
        optimizer=OptimizerConfig(kind="muon", learning_rate=3e-3, muon_learning_rate=0.02, warmup_steps=20),
        eval_every=55,
        heldout_bytes=50_000,
        compressors=False,
    )
