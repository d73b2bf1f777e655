"""One small model of every kind beside the pre-norm decoder, with something to call it with."""

import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.models.classifier import Classifier, ClassifierConfig
from gptjax.models.encoder_decoder import EncoderDecoder
from gptjax.models.families import bert, chatglm, glm, glm130b, gpt1, transformer
from gptjax.models.functional import ModelDefinition
from gptjax.models.glm import GLM
from gptjax.models.heads import LanguageModel, MaskedLanguageModel

# One layer without a scan, which compiles fastest.
TINY = {"vocab_size": 40, "context_length": 12, "width": 16, "layers": 1, "heads": 2, "loop": "unroll"}
TOKENS = jnp.asarray(np.random.default_rng(7).integers(0, 40, (2, 12)), jnp.int32)
# Part A of eight tokens and a blank of four.
PLACES = np.array([[*zip(range(8), [0] * 8, strict=True), *zip([3] * 4, range(1, 5), strict=True)]] * 2)


def blanks(config):
    return ModelDefinition(GLM, config), lambda d, p: d.apply(p, TOKENS, positions=jnp.asarray(PLACES))


def classifier(trunk, classes):
    """Over examples of one sequence."""
    ends = jnp.array([[11], [6]])
    definition = ModelDefinition(Classifier, ClassifierConfig(trunk=trunk, classes=classes))
    return definition, lambda d, p: d.apply(p, TOKENS[:, None], ends)[0]


# name: (definition, `(definition, params) -> logits`)
KINDS = {
    "transformer": (
        ModelDefinition(EncoderDecoder, transformer("base", **TINY)),
        lambda d, p: d.apply(p, TOKENS, TOKENS[::-1]),
    ),
    "bert": (
        ModelDefinition(MaskedLanguageModel, bert("base", **TINY)),
        lambda d, p: jnp.concatenate([x.ravel() for x in d.apply(p, TOKENS)]),
    ),
    "gpt1": (ModelDefinition(LanguageModel, gpt1("117M", **TINY)), lambda d, p: d.apply(p, TOKENS)),
    "glm": blanks(glm("110M", **TINY)),
    "glm130b": blanks(glm130b(**TINY, mlp_width=24)),
    "chatglm": blanks(chatglm(**TINY)),
    "classifier of bert": classifier(bert("base", **TINY), 3),
    "classifier of gpt1": classifier(gpt1("117M", **TINY), None),
}
# Each is a program to compile: three of different modules stand for all where tests must be quick.
QUICK = {"transformer", "glm130b", "classifier of bert"}
PROGRAMS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
# How many linear maps each has in its layers, and outside them: pooler, transform, next sentence, classes.
MAPS = {
    "transformer": (6 + 10, 0),
    "bert": (6, 3),
    "gpt1": (6, 0),
    "glm": (6, 0),
    "glm130b": (7, 0),
    "chatglm": (6, 0),
    "classifier of bert": (6, 2),
    "classifier of gpt1": (6, 1),
}
