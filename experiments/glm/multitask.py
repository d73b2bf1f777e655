"""GLM's mixture: spans, sentences and long blanks in one model.

Paper: Du et al. 2021 (GLM, arXiv 2103.10360), section 2.2; the shares are those of its largest model.
Expected: 3.89 nats per token of English blanks with both sides, 3.57 from the left (three seeds).
Time: 4 minutes on one core.
Command: gptjax train experiments/glm/multitask.py
"""

from dataclasses import replace

from experiments.glm.infill import config as base


def config():
    """The configuration of the run."""
    return replace(base(), objectives={"token": 0.5, "sentence": 0.3, "document": 0.2})
