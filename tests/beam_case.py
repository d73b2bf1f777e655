"""A small language model and prompts whose beam search ends early: for stored numbers and parity."""

from functools import partial

import jax
import lineage
import numpy as np

from gptjax.generation.beam import complete
from gptjax.generation.decode import left_pad

DEFINITION, PARAMS, _ = lineage.gpt1_case()
PROMPTS = [[3, 2], [7, 41], [13, 29], [33, 23], [34, 37], [4, 5, 6, 7]]
END, PAD, BEAMS, NEW = 21, 0, 4, 9
PLAIN = {"alpha": 0.0, "end_id": END, "pad_id": PAD}


def search(beams=BEAMS):
    """Our hypotheses of all prompts in one batch, scored by plain log-probability."""
    tokens, mask = left_pad(PROMPTS, PAD, max(map(len, PROMPTS)))
    return jax.jit(partial(complete, DEFINITION, new_tokens=NEW, beams=beams, **PLAIN))(PARAMS, tokens, mask)


def listed(tokens, scores) -> dict[str, float]:
    """Hypotheses as named numbers, for a stored file."""
    found = {f"row {row} score": float(score) for row, score in enumerate(scores)}
    places = np.ndenumerate(np.asarray(tokens))
    return found | {f"row {row} token {place}": float(token) for (row, place), token in places}
