"""Alternating dense and banded attention against a model in plain numpy, written from the papers' formulas
alone.

Brown et al. 2020, section 2.1: GPT-2 with "alternating dense and locally banded sparse attention patterns in
the layers". Query i of a banded layer sees key j if `0 <= i - j < W`; of a dense one, if `0 <= i - j`.
Everything is float64 and in loops.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import lineage
import numpy as np
import pytest
from lineage import random_params
from numpy_slopes import check_numpy, numpy_scalar

from gptjax.models.attention import Attention, causal_mask, reference_attention
from gptjax.models.banded import band_mask, banded_attention
from gptjax.models.families import gpt3
from gptjax.models.functional import ModelDefinition, layer_parameters, matmul_flops_per_token
from gptjax.models.heads import LanguageModel

L, W, V, D, H = 23, 4, 29, 8, 2
SHAPE = {"vocab_size": V, "context_length": 32, "width": D, "layers": 4, "heads": H, "attention_band": W}
TOKENS = np.random.default_rng(3).permutation(V)[None, :L]


def numpy_norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def numpy_linear(x, p):
    return x @ p["kernel"] + p["bias"]


def numpy_attention(x, p, band, documents, heads):
    channels = x.shape[1] // heads
    q, k, v = (
        numpy_linear(x, p[name]).reshape(len(x), heads, channels) for name in ("query", "key", "value")
    )
    out = np.zeros_like(q)
    for i in range(len(x)):
        seen = [j for j in range(len(x)) if 0 <= i - j < band and documents[i] == documents[j]]
        for h in range(heads):
            weights = np.exp([q[i, h] @ k[j, h] / np.sqrt(channels) for j in seen])
            out[i, h] = sum(w * v[j, h] for w, j in zip(weights / weights.sum(), seen, strict=True))
    return numpy_linear(out.reshape(x.shape), p["output"])


def numpy_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def numpy_logits(params, tokens, positions, documents, layers=4, band=W, heads=H):
    """The forward pass of one row."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)["decoder"]
    x = params["embedding"][tokens] + params["positions"][positions]
    for i in range(layers):
        p = jax.tree.map(lambda a, i=i: a[i], params["blocks"])
        reach = np.inf if i % 2 == 0 else band
        x = x + numpy_attention(numpy_norm(x, p["attention_norm"]), p["attention"], reach, documents, heads)
        inner = numpy_gelu(numpy_linear(numpy_norm(x, p["mlp_norm"]), p["mlp"]["up"]))
        x = x + numpy_linear(inner, p["mlp"]["down"])
    return numpy_norm(x, params["norm"]) @ params["embedding"].T


@pytest.fixture(scope="module")
def model():
    definition = ModelDefinition(LanguageModel, gpt3("125M", **SHAPE))
    return definition, random_params(definition)


@pytest.fixture(scope="module")
def logits(model):
    definition, params = model
    return jax.jit(definition.apply)(params, TOKENS)


def test_forward_equals_numpy(model, logits):
    expected = numpy_logits(model[1], TOKENS[0], np.arange(L), np.ones(L))
    np.testing.assert_allclose(logits[0], expected, rtol=0, atol=1e-4)
    other_band = numpy_logits(model[1], TOKENS[0], np.arange(L), np.ones(L), band=W + 1)
    assert np.abs(logits[0] - other_band).max() > 0.01, "the test must tell one band from the next"


def test_logits_and_gradients_equal_numpy():
    """Each parameter array's gradient along a random direction against a central difference of the scalar."""
    case, (count, length) = lineage.gpt3_case(), lineage.TOKENS.shape
    shape = {"layers": case[0].config.layers, "band": case[0].config.attention_band, "heads": 4}

    def forward(params):
        row = np.arange(length), np.ones(length)
        logits = np.stack([numpy_logits(params, lineage.TOKENS[i], *row, **shape) for i in range(count)])
        return numpy_scalar([logits]), [logits]

    check_numpy("gpt3", case, forward)


@pytest.mark.parametrize("change", [{"loop": "unroll", "remat": "full"}, {"attention": "xla"}], ids=str)
def test_other_ways_to_compute_it_agree(model, logits, change):
    definition, params = model
    other = ModelDefinition(LanguageModel, dataclasses.replace(definition.config, **change))
    np.testing.assert_allclose(jax.jit(other.apply)(params, TOKENS), logits, rtol=0, atol=2e-5)


def test_packed_documents_see_only_themselves(model):
    """Two documents, the second longer than two bands, and padding."""
    definition, params = model
    lengths = [6, 14, 3]
    documents = np.repeat([1, 2, 0], lengths)
    positions = np.concatenate([np.arange(n) for n in lengths])
    row = {"segment_ids": documents[None], "positions": positions[None]}
    ours = jax.jit(definition.apply)(params, TOKENS, **row)[0]
    np.testing.assert_allclose(
        ours[:20], numpy_logits(params, TOKENS[0], positions, documents)[:20], rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("band", [None, 3, 7])
def test_what_reaches_a_query_is_the_band(band):
    """The derivative of every output of one attention by every input; 23 is no multiple of 3 or 7."""
    definition = ModelDefinition(Attention, gpt3("125M", **SHAPE))
    params, mask = random_params(definition), causal_mask(L)
    x = np.random.default_rng(5).normal(size=(1, L, D)).astype(np.float32)

    @jax.jit
    @jax.jacrev
    def jacobian(x):
        return definition.apply(params, x, mask, band=band)[0][0].sum(-1)

    reach = np.abs(jacobian(x)[:, 0]).max(-1) > 0
    distance = np.arange(L)[:, None] - np.arange(L)[None, :]
    np.testing.assert_array_equal(reach, (distance >= 0) & (distance < (band or L)))


@pytest.mark.parametrize("length", [9, 12])
def test_blocks_equal_the_whole_square_with_gradients(length):
    """Two key heads for four query heads, two documents a row, the last block full and not."""
    rng = np.random.default_rng(0)
    q, direction = rng.normal(size=(2, 2, 4, length, 6)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, 2, length, 6)).astype(np.float32)
    mask = causal_mask(length, jnp.asarray(np.repeat([[1, 2], [3, 0]], [length - 5, 5], axis=1)))
    dense = partial(reference_attention, dtype="float32")

    def pull(attention):
        scalar = lambda q, k, v: (attention(q, k, v) * direction).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(scalar, (0, 1, 2)))(q, k, v)

    blocks = pull(lambda q, k, v: banded_attention(dense, q, k, v, mask, W))
    square = pull(lambda q, k, v: dense(q, k, v, band_mask(mask, W)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-6), blocks, square)


def test_logits_with_cache_equal_logits_without(model, logits):
    """A prompt, one token, a few, one by one to the end of the cache; the second row padded on the left."""
    definition, params = model
    pad = 5
    tokens = np.concatenate([np.zeros((1, pad), int), TOKENS[:, : L - pad]], 1)
    tokens, mask = np.concatenate([TOKENS, tokens]), np.ones((2, L), bool)
    mask[1, :pad] = False

    def cached(params):
        bound, layers = definition.bind(params), layer_parameters(params)
        caches, out = bound.decoder.empty_caches(2, L), []
        places = [0, 9, 10, 14, 20, 21, 22, 23]
        for first, last in zip(places[:-1], places[1:], strict=True):
            seen = (np.arange(L)[None] <= np.arange(first, last)[:, None]) & mask[:, None, None]
            positions = np.maximum(mask.cumsum(1) - 1, 0)[:, first:last]
            hidden, caches = bound.decoder.extend(
                tokens[:, first:last], positions, seen, caches, jnp.int32(first), layers
            )
            out.append(bound.logits(hidden))
        return jnp.concatenate(out, 1)

    with_cache = jax.jit(cached)(params)
    np.testing.assert_allclose(with_cache[0], logits[0], rtol=0, atol=2e-5)
    np.testing.assert_allclose(with_cache[1, pad:], logits[0, : L - pad], rtol=0, atol=2e-5)


def count_scores(definition, params, length):
    """Entries of the score products in the traced program of one forward pass."""
    tokens, found = jnp.zeros((1, length), jnp.int32), []

    def visit(jaxpr, times):
        for equation in jaxpr.eqns:
            inner = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
            batch = dict(equation.params).get("dimension_numbers", ((), ((), ())))
            if equation.primitive.name == "dot_general" and len(batch[1][0]) == 2 and batch[0][1] == (3,):
                found.append(times * equation.outvars[0].aval.size)
            for value in equation.params.values():
                for part in value if isinstance(value, tuple | list) else [value]:
                    closed = getattr(part, "jaxpr", None)
                    if closed is not None or hasattr(part, "eqns"):
                        visit(part if hasattr(part, "eqns") else closed, inner)

    visit(jax.make_jaxpr(definition.apply)(params, tokens).jaxpr, 1)
    return sum(found)


@pytest.mark.parametrize("loop", ["scan", "unroll"])
def test_a_banded_layer_costs_two_bands_a_token(loop):
    config = gpt3("125M", **SHAPE | {"context_length": 64, "loop": loop})
    definition = ModelDefinition(LanguageModel, config)
    dense, banded = H * 64 * 64, H * 64 * 2 * W
    assert count_scores(definition, definition.abstract, 64) == 2 * dense + 2 * banded


def test_flops_count_the_band():
    dense, banded = (
        matmul_flops_per_token(ModelDefinition(LanguageModel, gpt3("125M", **SHAPE | change)), 32)
        for change in ({"attention_band": None}, {})
    )
    assert dense - banded == 12 * D * 2 * (32 - W)
