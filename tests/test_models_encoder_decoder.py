"""The Transformer of 2017: published sizes, masks, cache. Its logits: tests/test_models_lineage.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lineage import TINY, V, random_params, transformer_inputs

from gptjax.config import ConfigError
from gptjax.models.encoder_decoder import EncoderDecoder
from gptjax.models.families import transformer
from gptjax.models.functional import ModelDefinition, unstack
from gptjax.models.sinusoids import sinusoids

CONFIG = transformer("base", **TINY | {"layers": 1}, dropout=0.0)
SOURCES, TARGETS, SOURCE_IDS, TARGET_IDS = transformer_inputs()


@pytest.fixture(scope="module")
def model():
    definition = ModelDefinition(EncoderDecoder, CONFIG)
    return definition, random_params(definition), jax.jit(definition.apply)


@pytest.fixture(scope="module")
def logits(model):
    _, params, apply = model
    return apply(params, SOURCES, TARGETS, source_segment_ids=SOURCE_IDS, segment_ids=TARGET_IDS)


@pytest.mark.parametrize(("size", "count"), [("base", 63_045_632), ("big", 214_171_648)])
def test_parameter_counts(size, count):
    """A table of V D; 4 D^2 + 2 D F + F + 5 D an encoder layer, 8 D^2 + 2 D F + F + 7 D a decoder layer."""
    config = transformer(size)
    D, F = config.width, config.inner_width
    encoder, decoder = 4 * D * D + 2 * D * F + F + 5 * D, 8 * D * D + 2 * D * F + F + 7 * D
    assert 37_000 * D + 6 * (encoder + decoder) == count
    assert ModelDefinition(EncoderDecoder, config).parameter_count == count


def test_unknown_sizes_and_impossible_shapes_are_refused(model):
    with pytest.raises(ConfigError, match="Transformer was not published in size 'small': use one of base"):
        transformer("small")
    with pytest.raises(ValueError, match="heads = 3 does not divide width = 512"):
        transformer("base", heads=3)
    with pytest.raises(ValueError, match="width = 9 is odd"):
        transformer("base", width=9, heads=3)
    with pytest.raises(ValueError, match="17 tokens exceed the context length of 16"):
        model[0].apply(model[1], np.zeros((1, 17), int), TARGETS[:1])


def test_sinusoids_by_hand():
    """Four channels at position p: sine and cosine of p, sine and cosine of p / 100."""
    signal = sinusoids(jnp.asarray([[0, 3]]), 4)
    expected = [[0, 1, 0, 1], [np.sin(3), np.cos(3), np.sin(0.03), np.cos(0.03)]]
    np.testing.assert_allclose(signal[0], expected, rtol=1e-6, atol=1e-7)


def test_a_target_sees_itself_what_came_before_and_the_whole_source(model, logits):
    _, params, apply = model
    segments = {"source_segment_ids": SOURCE_IDS, "segment_ids": TARGET_IDS}

    def moved(sources, targets):
        return np.abs(apply(params, sources, targets, **segments) - logits).max(-1)

    targets, sources = TARGETS.copy(), SOURCES.copy()
    targets[:, 4] = (targets[:, 4] + 1) % V
    by_target = moved(SOURCES, targets)
    assert (by_target[:, :4] == 0).all() and (by_target[:, 4:7] > 1e-4).all()
    sources[:, -1] = (sources[:, -1] + 1) % V
    by_source = moved(sources, TARGETS)
    assert (by_source[0] > 1e-5).all(), "the source's last token reaches every target"
    assert (by_source[1, :7] == 0).all(), "in row 1 it is padding"


@pytest.mark.slow
def test_padding_and_packing_change_nothing(model, logits):
    """Row 1 without its padding, and with another pair packed after it."""
    _, params, apply = model
    alone = apply(params, SOURCES[1:, :11], TARGETS[1:, :7])
    np.testing.assert_allclose(alone[0], logits[1, :7], rtol=1e-5, atol=1e-5)
    pair = SOURCES[:1, :5], TARGETS[:1, :4]
    bound, rows = model[0].bind(params), {}
    rows["sources"] = np.concatenate([SOURCES[1:, :11], pair[0]], 1)
    rows["targets"] = np.concatenate([TARGETS[1:, :7], pair[1]], 1)
    source_ids, target_ids = np.repeat([[1, 2]], [11, 5], axis=1), np.repeat([[1, 2]], [7, 4], axis=1)
    source_positions = np.concatenate([np.arange(11), np.arange(5)])[None]
    target_positions = np.concatenate([np.arange(7), np.arange(4)])[None]
    memory = bound.encode(rows["sources"], segment_ids=source_ids, positions=source_positions)
    hidden = bound.hidden(
        rows["targets"],
        memory,
        segment_ids=target_ids,
        source_segment_ids=source_ids,
        positions=target_positions,
    )
    packed = bound.logits(hidden)[0]
    np.testing.assert_allclose(packed[:7], alone[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(packed[7:], apply(params, *pair)[0], rtol=1e-5, atol=1e-5)


def test_logits_with_cache_equal_logits_without(model, logits):
    """A first part of the targets, then one by one."""
    definition, params, _ = model

    @jax.jit
    def cached(params):
        bound, layers, slots = definition.bind(params), unstack(params["decoder"]), TARGETS.shape[1]
        memories = bound.remember(bound.encode(SOURCES, segment_ids=SOURCE_IDS), layers)
        caches, out = bound.empty_caches(2, slots), []
        for first, last in ((0, 8), (8, 9), (9, 10), (10, 11)):
            seen = (np.arange(slots)[None] <= np.arange(first, last)[:, None])[None, None]
            positions = np.broadcast_to(np.arange(first, last), (2, last - first))
            hidden, caches = bound.extend(
                TARGETS[:, first:last],
                positions,
                seen,
                caches,
                first,
                layers,
                memories,
                (SOURCE_IDS != 0)[:, None, None],
            )
            out.append(bound.logits(hidden))
        return jnp.concatenate(out, 1)

    found = cached(params)
    np.testing.assert_allclose(found[0], logits[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1, :7], logits[1, :7], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [{"loop": "unroll", "remat": "full"}, {"attention": "xla"}], ids=str)
def test_other_ways_to_compute_it_agree_dropout_included(change, model, logits):
    config = dataclasses.replace(CONFIG, dropout=0.2)
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles in a third of the default generator's time
    outputs = []
    for each in (config, dataclasses.replace(config, **change)):
        definition = ModelDefinition(EncoderDecoder, each)
        outputs.append(jax.jit(lambda p, d=definition: d.apply(p, SOURCES, TARGETS, key=key))(model[1]))
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-5)
    assert np.abs(outputs[0] - logits).max() > 0.1


def test_initialisation_is_xavier_s_and_the_embedding_has_unit_size_after_scaling():
    definition = ModelDefinition(EncoderDecoder, transformer("base", vocab_size=1000, width=64, layers=2))
    params = jax.jit(definition.initialise)(jax.random.key(0))
    # The smallest array has 8,192 draws: the sample's deviation errs by 0.8 %.
    np.testing.assert_allclose(np.std(params["embedding"]) * 64**0.5, 1, rtol=0.03)
    up = params["encoder"]["mlp"]["up"]["kernel"]
    np.testing.assert_allclose(np.std(up), (2 / (64 + 256)) ** 0.5, rtol=0.03)
    query = params["decoder"]["cross_attention"]["query"]
    np.testing.assert_allclose(np.std(query["kernel"]), (2 / 128) ** 0.5, rtol=0.03)
    assert "bias" not in query


def test_the_output_matrix_is_the_embedding(model):
    definition, params, _ = model
    matrix, transposed = definition.bind(params).output_matrix()
    assert transposed
    np.testing.assert_array_equal(matrix, params["embedding"])
