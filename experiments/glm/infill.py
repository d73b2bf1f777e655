"""A GLM on English and Chinese documentation: blanks are filled from both sides.

Positions are ChatGLM-6B's: tables of positions take longer to learn than a run of a minute has.

Paper: Du et al. 2021 (GLM, arXiv 2103.10360), section 2.1.
Expected: 4.2 % of English blanks whole, 4.12 nats per token of them (three seeds); see README.md.
Time: 4 minutes on one core.
Command: gptjax train experiments/glm/infill.py
"""

from experiments.external_data import external
from gptjax.models.families import glm
from gptjax.stages.infill import InfillConfig
from gptjax.training.optimizers import OptimizerConfig


def config() -> InfillConfig:
    """The configuration of the run."""
    texts = external("zh_en/pydocs_core_zh_en.jsonl.gz")
    shape = {"width": 96, "layers": 2, "heads": 3, "context_length": 160, "loop": "unroll"}
    return InfillConfig(
        model=glm("110M", vocab_size=2048, **shape, positions="rotary_2d", dropout=0.0),
        corpora={f"{texts}:en": 0.5, f"{texts}:zh": 0.5},
        objectives={"token": 1.0},
        length=128,
        batch_size=16,
        steps=1000,
        optimizer=OptimizerConfig(
            kind="muon", learning_rate=3e-3, muon_learning_rate=0.02, weight_decay=0.05, warmup_steps=20
        ),
        eval_every=500,
    )
