"""The model that reads from the left, stopped once it has predicted as many tokens as the one with blanks.

All of a text is a lesson for the one, 15 % of it and the blanks' ends for the other.

Paper: Du et al. 2021 (GLM, arXiv 2103.10360), section 2.1.
Expected: see README.md in this folder.
Time: about 45 seconds on one core.
Command: gptjax train experiments/glm/left_to_right_short.py
"""

from dataclasses import replace

from experiments.glm.left_to_right import config as base


def config():
    """The configuration of the run."""
    return replace(base(), steps=200)
