"""One head for four uses, over BERT's trunk and over GPT-1's: what it reads, and what it does not."""

import jax
import jax.numpy as jnp
import lineage
import numpy as np
import pytest

from gptjax.models.classifier import Classifier, ClassifierConfig
from gptjax.models.families import bert, gpt1
from gptjax.models.functional import ModelDefinition

TRUNKS = {
    "bert": bert("base", **lineage.TINY | {"layers": 1}),
    "gpt1": gpt1("117M", **lineage.TINY | {"layers": 1}),
}
TOKENS = np.random.default_rng(7).integers(0, lineage.V, (3, 2, 12))
ENDS = np.array([[11, 8], [5, 9], [7, 3]])


@pytest.fixture(scope="module", params=[(name, classes) for name in TRUNKS for classes in (3, None)], ids=str)
def case(request):
    """(bias of the head, classes, `(tokens, ends) -> logits`)."""
    name, classes = request.param
    definition = ModelDefinition(Classifier, ClassifierConfig(trunk=TRUNKS[name], classes=classes))
    params = jax.tree.map(jnp.asarray, lineage.random_params(definition))
    bias = np.asarray(params["head"]["bias"])
    return bias, classes, jax.jit(lambda tokens, ends: definition.apply(params, tokens, ends)[0])


def test_shapes_and_what_is_read(case):
    _, classes, logits_of = case
    logits = logits_of(TOKENS, ENDS)
    assert logits.shape == (3, classes or 2) and logits.dtype == jnp.float32
    padding = np.where(np.arange(12) > ENDS[..., None], 1, TOKENS)
    np.testing.assert_allclose(logits_of(padding, ENDS), logits, atol=1e-5)
    first = np.where(np.arange(12) == 0, (TOKENS + 1) % lineage.V, TOKENS)
    assert np.abs(logits_of(first, ENDS) - logits).max(1).min() > 1e-3
    last = np.where(np.arange(12) == ENDS[..., None], (TOKENS + 1) % lineage.V, TOKENS)
    assert np.abs(logits_of(last, ENDS) - logits).max(1).min() > 1e-3


def test_two_sequences(case):
    """Of classes what is read of both is added, in either order; of a choice each has a logit of its own."""
    bias, classes, logits_of = case
    logits, swapped = logits_of(TOKENS, ENDS), logits_of(TOKENS[:, ::-1], ENDS[:, ::-1])
    if classes:  # (r_1 + r_2) W + b, of which a mean would give half
        alone = [logits_of(TOKENS[:, [s]], ENDS[:, [s]]) - bias for s in (0, 1)]
        np.testing.assert_allclose(logits - bias, alone[0] + alone[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(swapped if classes else swapped[:, ::-1], logits, atol=1e-5)
    other = TOKENS.copy()
    other[:, 1] = (other[:, 1] + 1) % lineage.V
    moved = np.abs(logits_of(other, ENDS) - logits)
    assert (moved[:, 0] < 1e-5).all() == (classes is None) and (moved[:, 1] > 1e-3).all()


def test_dropout_needs_a_key():
    trunk = bert("base", **lineage.TINY | {"layers": 1, "dropout": 0.5})
    definition = ModelDefinition(Classifier, ClassifierConfig(trunk=trunk, classes=2))
    params = jax.tree.map(jnp.asarray, lineage.random_params(definition))
    run = jax.jit(lambda key: definition.apply(params, TOKENS[:, :1], ENDS[:, :1], key=key)[0])
    keys = [jax.random.key(n) for n in (0, 0, 1)]
    one, same, other = (run(key) for key in keys)
    assert (one == same).all() and (one != other).any()
