"""Losses of small models with fixed parameters and rows: for stored numbers, for parity with transformers."""

import jax
import jax.numpy as jnp
import lineage
import numpy as np

from gptjax.models.classifier import Classifier, ClassifierConfig
from gptjax.models.families import gpt1
from gptjax.models.functional import ModelDefinition
from gptjax.stages.classify import make_classify_loss
from gptjax.stages.masked import count_predictions, make_masked_loss

LM_WEIGHT = 0.5


def bert_rows():
    """The rows of `lineage.bert_inputs`, three and two tokens of them hidden, with both sentence labels."""
    rows = {name: jnp.asarray(array) for name, array in lineage.bert_inputs().items()}
    rows["tokens"] = jnp.asarray(lineage.TOKENS)
    rows["places"] = jnp.array([[1, 4, 12], [3, 7, 0]])
    rows["targets"] = jnp.array([[5, 40, 7], [9, 41, 0]])
    rows["place_weights"] = jnp.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    return rows | {"labels": jnp.array([0, 1]), "row_weights": jnp.ones(2)}


def bert_case():
    """(definition, params, `params -> (loss, metrics)`)."""
    definition, params, _ = lineage.bert_case()
    rows, loss = bert_rows(), make_masked_loss(definition)
    return definition, params, lambda p: loss(p, rows, count_predictions(rows), None)


def choice_rows():
    """Two questions with two answers each; all sequences are of one length, as a mean over tokens wants."""
    tokens = np.random.default_rng(5).integers(0, lineage.V, (2, 2, 12))
    rows = {"tokens": tokens, "token_types": np.zeros_like(tokens), "ends": np.full((2, 2), 11)}
    rows |= {"labels": np.array([1, 0]), "weights": np.ones(2, np.float32)}
    return {name: jnp.asarray(array) for name, array in rows.items()}


def gpt1_case():
    """As `bert_case`, the loss of the answers plus half that of the language."""
    trunk = gpt1("117M", **lineage.TINY)
    definition = ModelDefinition(Classifier, ClassifierConfig(trunk=trunk, classes=None))
    rows, loss = choice_rows(), make_classify_loss(definition, LM_WEIGHT)
    return definition, lineage.random_params(definition), lambda p: loss(p, rows, 2.0, None)


def figures(case) -> tuple[dict[str, float], dict]:
    """(loss and metrics of a case, gradient)."""
    (loss, metrics), gradient = jax.jit(jax.value_and_grad(case[2], has_aux=True))(case[1])
    return {"total": float(loss)} | {name: float(value) for name, value in metrics.items()}, gradient
