"""Quantised weights against numpy, their error, their memory, and models that run on them."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import lineage
import numpy as np
import pytest
from kinds import KINDS, MAPS, PROGRAMS

from gptjax.config import ConfigError
from gptjax.evaluation.quantized import quantization_table, quantization_text
from gptjax.generation.decode import advance, left_pad, prefill, request_keys
from gptjax.generation.engine import TextEngine
from gptjax.generation.sampling import SamplingConfig
from gptjax.models.families import gpt2, llama
from gptjax.models.functional import ModelDefinition, layer_parameters, linear_maps
from gptjax.models.heads import LanguageModel, ScalarModel
from gptjax.models.quantization import (
    QuantizationConfig,
    QuantizedMatrix,
    dequantize,
    dequantize_matrix,
    quantize,
    quantize_matrix,
    quantized_axes,
    tree_bytes,
)
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.sharding.rules import parameter_shardings
from gptjax.stages.handover import TrainedModel

TINY = {"vocab_size": 37, "context_length": 48, "width": 16, "layers": 2, "heads": 4}
MODELS = {
    "gpt2": ModelDefinition(LanguageModel, gpt2("124M", **TINY)),
    "llama": ModelDefinition(LanguageModel, llama("7B", **TINY, kv_heads=2, mlp_width=24)),
    "scalar": ModelDefinition(ScalarModel, gpt2("124M", **TINY, loop="unroll")),
}
INT8, INT4 = QuantizationConfig(bits=8), QuantizationConfig(bits=4)
CONFIGS = {
    "int8": INT8,
    "int4": INT4,
    "int8 in groups": QuantizationConfig(bits=8, group_size=4),
    "int4 in groups": QuantizationConfig(bits=4, group_size=8, scale_dtype="bfloat16"),
    "int4, rounded scales": QuantizationConfig(bits=4, scale_dtype="bfloat16"),
}
TOKENS = jnp.asarray(np.random.default_rng(7).integers(0, 37, (2, 12)), jnp.int32)


def draw(abstract, seed=0, std=0.4):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, std, x.shape), jnp.float32), abstract)


def weight(*shape, seed=0):
    """Columns of very different sizes, as trained weights have."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-4, 1, (*shape[:-2], 1, shape[-1]))
    return jnp.asarray(rng.normal(size=shape) * sizes, jnp.float32)


def leaf(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def test_int4_by_hand():
    """Scales 1, 0.5 and 0; input 2 i lies in the lower half of a byte, each value plus 8."""
    column = jnp.asarray([[7.0, 0.5, 0.0], [-3.2, -3.5, 0.0], [1.6, 1.0, 0.0]])
    matrix = quantize_matrix(column, INT4)
    np.testing.assert_array_equal(matrix.scales, [[1.0, 0.5, 0.0]])
    # 7 -3 2 | 1 -7 2 | 0 0 0, and a 0 that fills the last byte.
    expected = [[15 | 5 << 4, 9 | 1 << 4, 8 | 8 << 4], [10 | 8 << 4, 10 | 8 << 4, 8 | 8 << 4]]
    np.testing.assert_array_equal(matrix.values, expected)
    assert matrix.values.dtype == jnp.uint8
    back = [[7.0, 0.5, 0.0], [-3.0, -3.5, 0.0], [2.0, 1.0, 0.0]]
    np.testing.assert_array_equal(dequantize_matrix(matrix), back)


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_of_the_paper_are_columns_here(bits):
    """GLM-130B's `W` is [outputs, inputs] and a row has one scale; in numpy, float64."""
    ours = np.asarray(weight(3, 15, 6), np.float64)
    matrix = quantize_matrix(jnp.asarray(ours, jnp.float32), QuantizationConfig(bits=bits))
    back = np.asarray(dequantize_matrix(matrix), np.float64)
    for layer in range(3):
        for row, quantised in zip(ours[layer].T, back[layer].T, strict=True):
            scale = np.abs(row).max() / (2 ** (bits - 1) - 1)
            np.testing.assert_allclose(quantised, np.round(row / scale) * scale, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_error_is_at_most_half_a_step(name):
    config, inputs = CONFIGS[name], 48
    w = np.asarray(weight(2, inputs, 50), np.float64)
    error = np.abs(np.asarray(dequantize_matrix(quantize_matrix(jnp.asarray(w, jnp.float32), config))) - w)
    group, levels = config.group_size or inputs, 2 ** (config.bits - 1) - 1
    largest = np.abs(w).reshape(2, -1, group, 50).max(2)
    bound = np.repeat(largest / (2 * levels), group, axis=1)
    # A scale in bfloat16 is rounded up by at most 2^-7 of its size; 1e-6 is float32's share.
    slack = 1 + 2**-7 if config.scale_dtype == "bfloat16" else 1 + 1e-6
    assert (error <= slack * bound + 1e-6 * np.abs(w)).all()
    assert (error > 0.9 * bound).any(), "the bound is not the one that holds"


@pytest.mark.parametrize("name", CONFIGS)
def test_quantising_twice_changes_nothing(name):
    config = CONFIGS[name]
    once = quantize_matrix(weight(2, 48, 10), config)
    twice = quantize_matrix(dequantize_matrix(once), config)
    np.testing.assert_array_equal(once.values, twice.values)
    np.testing.assert_allclose(once.scales.astype(jnp.float32), twice.scales.astype(jnp.float32), rtol=1e-6)


def test_a_column_that_is_not_finite_stays_visible():
    broken = weight(2, 8, 3).at[0, 3, 1].set(jnp.nan).at[1, 0, 2].set(jnp.inf)
    for config in (INT8, INT4):
        back = np.isnan(np.asarray(dequantize_matrix(quantize_matrix(broken, config))))
        assert back[0, :, 1].all() and back[1, :, 2].all() and back.sum() == 16


def test_groups_that_do_not_divide_are_refused():
    config = QuantizationConfig(group_size=5)
    with pytest.raises(
        ConfigError, match="group_size = 5 does not divide the 16 inputs of a linear map: use"
    ):
        quantize(draw(MODELS["gpt2"].abstract), config)
    with pytest.raises(ValueError, match="bits"):
        QuantizationConfig(bits=3)


def test_a_part_of_a_quantised_matrix_is_refused():
    with pytest.raises(TypeError, match="a quantised matrix is read whole, as matrix"):
        quantize_matrix(weight(4, 4), INT8)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_of_every_kind_the_linear_maps_are_quantised(kind):
    abstract = KINDS[kind][0].abstract
    small = jax.eval_shape(partial(quantize, config=INT4), abstract)
    maps = linear_maps(abstract)
    assert len(maps) == sum(MAPS[kind])
    assert all(isinstance(leaf(small, path), QuantizedMatrix) for path in maps)
    # Values, scales in place of a kernel; all other leaves are as many as before.
    assert len(jax.tree.leaves(small)) == len(jax.tree.leaves(abstract)) + len(maps)


@pytest.mark.parametrize("model", MODELS)
def test_linear_maps_alone_are_quantised(model):
    definition = MODELS[model]
    params = draw(definition.abstract)
    small = quantize(params, INT4)
    maps = set(linear_maps(params))
    assert len(maps) == (7 if model == "llama" else 6)
    for path, original in jax.tree_util.tree_leaves_with_path(params):
        names = tuple(key.key for key in path)
        if names in maps:
            assert isinstance(leaf(small, names), QuantizedMatrix)
            assert isinstance(leaf(params, names), jax.Array), "the original tree was changed"
        else:
            assert leaf(small, names) is original
    back = dequantize(small)
    assert jax.tree.map(jnp.shape, back) == jax.tree.map(jnp.shape, params)


def test_memory_falls_by_the_arithmetic():
    """8 bits are a quarter of float32, 4 bits an eighth, plus a scale for each output."""
    config = gpt2("124M", layers=1)
    abstract = ModelDefinition(LanguageModel, config).abstract
    weights, scales = 12 * 768**2, 4 * 768 + 4 * 768 + 768
    rest = tree_bytes(abstract) - 4 * weights
    sizes = {
        name: tree_bytes(jax.eval_shape(partial(quantize, config=c), abstract)) - rest
        for name, c in {**CONFIGS, "groups": QuantizationConfig(bits=4, group_size=128)}.items()
    }
    assert sizes["int8"] == weights + 4 * scales
    assert sizes["int4"] == weights // 2 + 4 * scales
    assert sizes["groups"] == weights // 2 + 4 * weights // 128
    assert sizes["int4 in groups"] == weights // 2 + 2 * weights // 8


def test_memory_on_the_device_is_as_described():
    params = draw(MODELS["gpt2"].abstract)
    small = quantize(params, INT4)
    kernel = leaf(small, linear_maps(params)[0])
    assert sum(x.nbytes for x in jax.tree.leaves(kernel)) == 2 * 16 * 16 // 2 + 2 * 16 * 4
    assert tree_bytes(small) == sum(x.nbytes for x in jax.tree.leaves(small)) < tree_bytes(params)


@pytest.mark.parametrize("model", MODELS)
def test_a_model_on_quantised_weights_is_the_model_on_their_values(model):
    definition = MODELS[model]
    params = draw(definition.abstract)
    apply = jax.jit(definition.apply)
    small = quantize(params, INT4)
    ours, expected = apply(small, TOKENS), apply(dequantize(small), TOKENS)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    exact = apply(params, TOKENS)
    assert np.abs(ours - exact).max() > 1e-3
    finer = np.abs(apply(dequantize(quantize(params, INT8)), TOKENS) - exact).max()
    assert finer < 0.3 * np.abs(ours - exact).max()


@pytest.mark.parametrize("kind", PROGRAMS)
def test_every_kind_of_model_runs_on_quantised_weights(kind):
    """The logits are those of the same values in float32; 8 bits change them less than 4."""
    definition, call = KINDS[kind]
    params, run = lineage.random_params(definition), jax.jit(partial(call, definition))
    small, finer = (quantize(params, config) for config in (CONFIGS["int4 in groups"], INT8))
    values, exact = run(dequantize(small)), run(params)
    np.testing.assert_allclose(run(small), values, rtol=1e-5, atol=1e-5)
    change, less = (np.abs(x - exact).max() for x in (values, run(dequantize(finer))))
    assert 0 < less < 0.5 * change
    assert tree_bytes(small) < tree_bytes(finer) < tree_bytes(params)


class Letters:
    """A tokenizer whose id i is the letter with code 64 + i."""

    pad_id = end_of_text_id = 36
    hash = ""

    def token_bytes(self, id):
        return bytes([64 + id])

    def decode(self, ids):
        return b"".join(map(self.token_bytes, ids)).decode()

    def encode(self, text):
        return [ord(letter) - 64 for letter in text]


@pytest.mark.slow
def test_the_engine_replies_from_quantised_weights():
    definition = ModelDefinition(LanguageModel, dataclasses.replace(MODELS["llama"].config, layers=1))
    small = quantize(draw(definition.abstract), INT8)
    prompts, settings = [[5, 6, 7], [30]], SamplingConfig(temperature=0.7, max_new_tokens=8)
    ours, expected = (TextEngine(definition, p, Letters(), ()) for p in (small, dequantize(small)))
    replies = ours.complete(prompts, settings, [1, 2])
    assert replies == expected.complete(prompts, settings, [1, 2])
    assert "".join(ours.stream(prompts[0], settings, 1)) == replies[0]


def test_decoding_makes_one_map_at_a_time():
    """Neither before the loop over tokens nor for several layers at once do the maps exist in full."""
    config = gpt2("124M", **TINY | {"width": 64, "layers": 3})
    definition = ModelDefinition(LanguageModel, config)
    small = jax.eval_shape(partial(quantize, config=INT4), definition.abstract)
    tokens, mask = left_pad([[1, 2, 3]], 36, 4)
    begin = partial(prefill, definition, new_tokens=4, pad_id=36)
    go_on = partial(advance, definition, sampling=SamplingConfig(temperature=0.0), stop_sequences=())
    layers = jax.eval_shape(partial(layer_parameters, rows=1), small)
    inputs = small, layers, tokens, mask, jax.eval_shape(lambda: request_keys([0]))
    state = jax.eval_shape(begin, *inputs)
    programs = {
        "prefill": jax.jit(begin).lower(*inputs),
        "advance": jax.jit(go_on).lower(small, layers, state, jnp.int32(4)),
    }
    largest, all_maps = 4 * 64 * 256, 4 * 3 * 12 * 64**2
    for name, program in programs.items():
        temporary = program.compile().memory_analysis().temp_size_in_bytes
        assert largest <= temporary < all_maps / 3, name


@pytest.mark.slow
def test_quantised_weights_lie_in_shards():
    config = dataclasses.replace(MODELS["llama"].config, vocab_size=40)
    definition, mesh = ModelDefinition(LanguageModel, config), make_mesh(MeshConfig(fsdp=2, tensor=2))
    params = draw(definition.abstract)
    config = QuantizationConfig(bits=4, group_size=8)
    small = quantize(params, config)
    axes = quantized_axes(definition.axes, config, definition.abstract)
    placed = jax.tree.map(jax.device_put, small, parameter_shardings(mesh, small, axes))
    up = placed["decoder"]["blocks"]["mlp"]["up"]["kernel"]
    assert up.values.addressable_shards[0].data.shape == (2, 4, 12)  # 16 inputs in 8 bytes, halved
    assert up.scales.addressable_shards[0].data.shape == (2, 2, 12)
    apply = jax.jit(definition.apply)
    np.testing.assert_allclose(apply(placed, TOKENS), apply(small, TOKENS), rtol=1e-5, atol=1e-5)


def test_the_table_of_formats_is_that_of_the_losses():
    definition = MODELS["gpt2"]
    model = TrainedModel(definition, draw(definition.abstract, std=0.2), Letters(), "")
    texts = ["ABCABD", "WORLD"]
    table = quantization_table(model, texts, {"int8": INT8, "int4": INT4}, length=4, batch_size=2)
    for row, config in zip(table, (None, INT8, INT4), strict=True):
        params = model.params if config is None else dequantize(quantize(model.params, config))
        tokens = [36, *Letters().encode(texts[0]), 36, *Letters().encode(texts[1])]
        losses = []
        for start in range(0, 12, 4):
            logits = jax.nn.log_softmax(definition.apply(params, jnp.asarray([tokens[start : start + 4]])))[0]
            following = tokens[start + 1 : start + 5]
            losses += [-float(logits[i, t]) for i, t in enumerate(following) if t != 36]
        assert len(losses) == 11
        np.testing.assert_allclose(row["nats"], np.mean(losses), rtol=1e-5)
        np.testing.assert_allclose(row["perplexity"], np.exp(row["nats"]), rtol=1e-6)
        np.testing.assert_allclose(row["bits_per_byte"], row["nats"] / np.log(2), rtol=1e-6)
    assert table[0]["change"] == 0 and table[0]["bytes"] > table[1]["bytes"] > table[2]["bytes"]
    np.testing.assert_allclose(table[2]["change"], table[2]["perplexity"] / table[0]["perplexity"] - 1)
    assert quantization_text(table).count("\n") == 4
