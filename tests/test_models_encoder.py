"""BERT's encoder and heads: published sizes, masks, invariances. Its logits: tests/test_models_lineage.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lineage import TINY, TOKENS, L, V, random_params

from gptjax.config import ConfigError
from gptjax.models.families import bert
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import MaskedLanguageModel

CONFIG = bert("base", **TINY | {"layers": 1}, dropout=0.0)


def size_of(tree):
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def model():
    definition = ModelDefinition(MaskedLanguageModel, CONFIG)
    return definition, random_params(definition), jax.jit(definition.apply)


# Table 6 of the paper and the README of the released code round these to millions; heads of pre-training
# apart.
@pytest.mark.parametrize(
    ("size", "count"),
    {
        "base": 109_482_240,
        "large": 335_141_888,
        "tiny": 4_385_920,
        "mini": 11_170_560,
        "small": 28_763_648,
        "medium": 41_373_184,
    }.items(),
)
def test_parameter_counts(size, count):
    definition = ModelDefinition(MaskedLanguageModel, bert(size))
    assert size_of(definition.abstract["encoder"]) + size_of(definition.abstract["pooler"]) == count
    D, vocabulary = definition.config.width, 30_522
    heads = D * D + D + 2 * D + vocabulary + 2 * D + 2  # transform and its norm, free bias, next sentence
    assert definition.parameter_count == count + heads


def test_unknown_sizes_and_impossible_shapes_are_refused(model):
    with pytest.raises(
        ConfigError, match="BERT was not published in size 'huge': use one of tiny, mini, small"
    ):
        bert("huge")
    with pytest.raises(ValueError, match="heads = 3 does not divide width = 16"):
        bert("base", width=16, heads=3)
    with pytest.raises(ValueError, match=f"{L + 1} tokens exceed the context length of {L}"):
        model[0].apply(model[1], jnp.zeros((1, L + 1), jnp.int32))


def test_every_token_sees_all_of_its_row_and_no_padding(model):
    _, params, apply = model
    segments = np.ones((2, L), np.int32)
    segments[1, 10:] = 0
    tokens, sentence = apply(params, TOKENS, segment_ids=segments)
    changed = TOKENS.copy()
    changed[:, -1] = (changed[:, -1] + 1) % V
    other_tokens, other_sentence = apply(params, changed, segment_ids=segments)
    moved = np.abs(tokens - other_tokens).max(-1)
    assert (moved[0] > 1e-4).all() and abs(sentence[0] - other_sentence[0]).max() > 1e-5
    np.testing.assert_array_equal(tokens[1, :10], other_tokens[1, :10])
    np.testing.assert_array_equal(sentence[1], other_sentence[1])
    assert np.isfinite(tokens).all()


def test_padding_and_packing_change_nothing(model):
    """Two sentences of 7 and 9 tokens alone, and packed in one row."""
    _, params, apply = model
    row, segments = TOKENS[:1], np.repeat([[1, 2]], [7, 9], axis=1)
    positions = np.concatenate([np.arange(7), np.arange(9)])[None]
    packed = apply(params, row, segment_ids=segments, positions=positions)[0]
    np.testing.assert_allclose(packed[:, :7], apply(params, row[:, :7])[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(packed[:, 7:], apply(params, row[:, 7:])[0], rtol=1e-5, atol=1e-5)


def test_token_types_are_told_apart_and_none_is_the_first(model):
    _, params, apply = model
    first = apply(params, TOKENS)[0]
    np.testing.assert_array_equal(apply(params, TOKENS, token_types=np.zeros((2, L), np.int32))[0], first)
    assert np.abs(apply(params, TOKENS, token_types=np.ones((2, L), np.int32))[0] - first).max() > 0.1


@pytest.mark.parametrize("change", [{"loop": "unroll", "remat": "dots"}, {"attention": "xla"}], ids=str)
def test_other_ways_to_compute_it_agree_dropout_included(change):
    config = dataclasses.replace(CONFIG, layers=2, dropout=0.2)
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles in a third of the default generator's time
    outputs = []
    for each in (config, dataclasses.replace(config, **change)):
        definition = ModelDefinition(MaskedLanguageModel, each)
        run = jax.jit(lambda params, d=definition: d.bind(params).hidden(TOKENS, key=key))
        outputs.append(run(random_params(definition)))
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-5)
    without = definition.bind(random_params(definition)).hidden(TOKENS)
    assert np.abs(outputs[0] - without).max() > 0.1


def test_heads_by_hand(model):
    definition, params, _ = model
    bound, rng = definition.bind(params), np.random.default_rng(1)
    hidden = rng.normal(size=(2, 3, 16)).astype(np.float32)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    pooled = np.tanh(hidden[:, 0] @ p["pooler"]["kernel"] + p["pooler"]["bias"])
    np.testing.assert_allclose(bound.pooled(hidden), pooled, rtol=1e-5, atol=1e-6)
    sentence = pooled @ p["next_sentence"]["kernel"] + p["next_sentence"]["bias"]
    np.testing.assert_allclose(bound.sentence_logits(hidden), sentence, rtol=1e-5, atol=1e-6)
    x = hidden @ p["transform"]["kernel"] + p["transform"]["bias"]
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
    x = x * p["transform_norm"]["scale"] + p["transform_norm"]["bias"]
    logits = x @ p["encoder"]["embedding"].T + p["output_bias"]
    np.testing.assert_allclose(bound.token_logits(hidden), logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bound.token_logits(hidden[0, 1]), logits[0, 1], rtol=1e-4, atol=1e-5)
