"""GLM's mixture: spans, sentences and long blanks in one model.

Paper: Du et al. 2021 (GLM, arXiv 2103.10360), section 2.2; the shares are those of its largest model.
Expected: see README.md in this folder.
Time: about 75 seconds on one core.
Command: gptjax train experiments/glm/multitask.py
"""

from dataclasses import replace

from experiments.glm.infill import config as base


def config():
    """The configuration of the run."""
    return replace(base(), objectives={"token": 0.5, "sentence": 0.3, "document": 0.2})
