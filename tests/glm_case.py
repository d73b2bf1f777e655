"""Small GLMs of each style with fixed parameters, and rows of packed examples with blanks."""

import jax.numpy as jnp
import lineage
import numpy as np

from gptjax.data.infilling import BlankIds, blank_example, pack_blanks
from gptjax.models.families import chatglm, glm, glm130b
from gptjax.models.functional import ModelDefinition
from gptjax.models.glm import GLM

V, L, TEXT_IDS = 46, 24, 40
IDS = BlankIds.after(TEXT_IDS)
TINY = {"vocab_size": V, "context_length": L, "width": 16, "layers": 2, "heads": 2}
CONFIGS = {
    "glm": glm("110M", **TINY, dropout=0.0),
    "glm130b": glm130b(**TINY, mlp_width=24, embedding_gradient=1.0, dropout=0.0),
    "chatglm": chatglm(**TINY, mlp_width=40),
}


def examples():
    """Two spans in a row of their own; one span at the end and a question with its answer share a row."""
    text = np.random.default_rng(0).integers(5, TEXT_IDS, 12).tolist()
    return [
        blank_example(text, [(2, 5), (8, 9)], [1, 0], IDS.token, IDS),
        blank_example(text[:6], [(4, 6)], [0], IDS.token, IDS),
        blank_example(text[3:9], [(4, 6)], [0], IDS.document, IDS, cls=False),
    ]


def rows():
    """tokens, targets, positions, segment_ids, loss_mask `[2, L]`, the first row padded."""
    return pack_blanks(examples(), L)


def real_tokens():
    """The tokens of `rows` that are no padding."""
    return rows()["tokens"][rows()["segment_ids"] > 0]


def case(name, config=None):
    """(definition, params, `params -> logits of the real tokens of each row`)."""
    definition = ModelDefinition(GLM, config or CONFIGS[name])
    batch = {key: jnp.asarray(array) for key, array in rows().items()}
    sizes = (rows()["segment_ids"] > 0).sum(1)

    def logits_of(params):
        logits = definition.apply(
            params, batch["tokens"], positions=batch["positions"], segment_ids=batch["segment_ids"]
        )
        return [logits[row, :size] for row, size in enumerate(sizes)]

    return definition, lineage.random_params(definition), logits_of
