"""GLM as it was published: a table for each of the two positions.

Paper: Du et al. 2021 (GLM, arXiv 2103.10360), section 2.3.
Expected: see README.md in this folder.
Time: about 75 seconds on one core.
Command: gptjax train experiments/glm/learned_positions.py
"""

from dataclasses import replace

from experiments.glm.infill import config as base


def config():
    """The configuration of the run."""
    return replace(base(), model=replace(base().model, positions="learned"))
