"""The same model on the same texts, read from the left alone: all of a text is one blank.

It stops when it has predicted as many tokens as `infill.py`: every token of a text is a lesson for it, where
the other learns from 15 % of them and from the blanks' ends.

Paper: Du et al. 2021 (GLM, arXiv 2103.10360), section 2.1; the objective is that of GPT.
Expected: 3.5 % of English blanks whole, 4.12 nats per token of them (three seeds); see README.md.
Time: about 45 seconds on one core.
Command: gptjax train experiments/glm/left_to_right.py
"""

from dataclasses import replace

from experiments.glm.infill import config as base


def config():
    """The configuration of the run."""
    return replace(base(), objectives={"document": 1.0}, shortest_document=1.0, steps=200)
