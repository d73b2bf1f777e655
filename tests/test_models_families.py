"""Published sizes: parameter counts, and the facts derived from declared parameters."""

import dataclasses

import jax
import numpy as np
import pytest

from gptjax.config import ConfigError
from gptjax.models.families import codex, gpt2, gpt3, llama, llama2, llama3
from gptjax.models.functional import (
    ModelDefinition,
    layer_parameters,
    leaf_at,
    linear_maps,
    matmul_flops_per_token,
)
from gptjax.models.heads import LanguageModel, ScalarModel
from gptjax.models.matmul import TransposedMatrix
from gptjax.sharding.rules import RULES

TINY = {"vocab_size": 40, "context_length": 12, "width": 16, "layers": 3, "heads": 4}
# Sums of the checkpoints' tensors; the papers print them rounded.
PUBLISHED = [
    (gpt2, "124M", 124_439_808),
    (gpt2, "355M", 354_823_168),
    (gpt2, "774M", 774_030_080),
    (gpt2, "1.5B", 1_557_611_200),
    (llama, "7B", 6_738_415_616),
    (llama, "13B", 13_015_864_320),
    (llama, "33B", 32_528_943_616),
    (llama, "65B", 65_285_660_672),
    (llama2, "7B", 6_738_415_616),
    (llama2, "13B", 13_015_864_320),
    (llama2, "34B", 33_743_970_304),
    (llama2, "70B", 68_976_648_192),
    (llama3, "8B", 8_030_261_248),
    (llama3, "70B", 70_553_706_496),
    (llama3, "405B", 405_853_388_800),
]


@pytest.mark.parametrize(("family", "size", "count"), PUBLISHED, ids=lambda x: getattr(x, "__name__", x))
def test_parameter_counts_are_the_published_ones(family, size, count):
    assert ModelDefinition(LanguageModel, family(size)).parameter_count == count


def test_the_paper_s_names_are_accepted():
    for paper, true in {"117M": "124M", "345M": "355M", "762M": "774M", "1542M": "1.5B"}.items():
        assert gpt2(paper) == gpt2(true)


def test_an_unknown_size_names_the_known_ones():
    with pytest.raises(ConfigError, match="GPT-2 was not published in size '125M': use one of 124M, 355M"):
        gpt2("125M")
    with pytest.raises(ConfigError, match="Llama 2 .* '65B': use one of 7B, 13B, 34B, 70B"):
        llama2("65B")


def test_llama2_is_llama_with_twice_the_context_and_groups_in_the_large_ones():
    for size in ("7B", "13B"):
        assert llama2(size) == llama(size, context_length=4096, norm_epsilon=1e-5)
    for size in ("34B", "70B"):
        assert (llama2(size).key_heads, llama2(size).heads) == (8, 64)
        assert (llama2(size).norm_epsilon, llama2(size).context_length) == (1e-5, 4096)


@pytest.mark.parametrize(
    ("size", "of", "others"),
    [
        ("85M", "125M", 84_934_656),
        ("300M", "350M", 301_989_888),
        ("679M", "760M", 679_477_248),
        ("2.5B", "2.7B", 2_516_582_400),
        ("12B", "13B", 12_582_912_000),
    ],
)
def test_codex_is_gpt3_with_runs_of_spaces_and_named_without_embeddings(size, of, others):
    """The names are 12 N D^2, linear maps alone; 24 ids are runs of spaces."""
    config = codex(size)
    same = {"vocab_size": 50_257, "context_length": 2048}
    assert dataclasses.replace(config, **same) == gpt3(of) and config.vocab_size == 50_257 + 24
    abstract = ModelDefinition(LanguageModel, config).abstract
    assert sum(leaf_at(abstract, path).size for path in linear_maps(abstract)) == others


def test_changes_reach_the_config_and_unknown_ones_are_refused():
    assert gpt2("124M", dropout=0.1) == dataclasses.replace(gpt2("124M"), dropout=0.1)
    assert llama("7B", tied=True).tied
    with pytest.raises(ValueError, match="drop_out"):
        gpt2("124M", drop_out=0.1)


def test_derived_widths_follow_a_replaced_config():
    """An ablation that replaces the width or the heads must not inherit the old derived numbers."""
    wider = dataclasses.replace(gpt2("124M", **TINY), width=32, heads=8)
    assert (wider.key_heads, wider.inner_width, wider.head_size) == (8, 128, 4)
    assert (llama3("8B").key_heads, llama3("8B").inner_width) == (8, 14336)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"heads": 3}, "heads = 3 does not divide width = 16"),
        ({"kv_heads": 3}, "kv_heads = 3 does not divide heads = 4"),
        ({"layers": 0}, "layers\n.*greater than or equal to 1"),
        ({"kv_heads": 0}, "kv_heads\n.*greater than or equal to 1"),
        ({"dropout": 1.0}, "dropout\n.*less than 1"),
        ({"heads": 16, "positions": "rotary"}, "rotary positions need an even head size"),
    ],
)
def test_impossible_shapes_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        gpt2("124M", **TINY | change)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def definition(request):
    if request.param == "gpt2":
        return ModelDefinition(LanguageModel, gpt2("124M", **TINY))
    return ModelDefinition(LanguageModel, llama("7B", **TINY, kv_heads=2, mlp_width=24))


def test_every_axis_of_every_parameter_has_a_name_with_a_rule(definition):
    names = jax.tree.leaves(definition.axes, is_leaf=lambda x: isinstance(x, tuple))
    for shape, axes in zip(jax.tree.leaves(definition.abstract), names, strict=True):
        assert len(shape.shape) == len(axes)
        assert set(axes) <= set(RULES)
    assert definition.axes["decoder"]["blocks"]["attention"]["query"]["kernel"] == (
        "layers",
        "embed",
        "heads",
    )
    assert definition.abstract["decoder"]["blocks"]["attention"]["query"]["kernel"].shape == (3, 16, 16)


def test_initialisation_has_the_declared_shapes_and_spreads_and_follows_the_key():
    config = llama("7B", **TINY | {"width": 128, "vocab_size": 512}, mlp_width=256)
    definition = ModelDefinition(LanguageModel, config)
    initialise = jax.jit(definition.initialise)
    params, again, other = (initialise(jax.random.key(seed)) for seed in (0, 0, 1))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), params, again))
    assert not np.allclose(params["unembedding"], other["unembedding"])
    described = jax.tree.map(lambda x: (x.shape, x.dtype), params)
    assert described == jax.tree.map(lambda x: (x.shape, x.dtype), definition.abstract)
    blocks = params["decoder"]["blocks"]
    # The smallest of these has 49,152 draws: the sample's deviation errs by 0.3 %, its mean by 0.5 % of std.
    for kernel, std in [
        (params["decoder"]["embedding"], 0.02),
        (params["unembedding"], 0.02),
        (blocks["attention"]["query"]["kernel"], 0.02),
        (blocks["mlp"]["down"]["kernel"], 0.02 / 6**0.5),
        (blocks["attention"]["output"]["kernel"], 0.02 / 6**0.5),
    ]:
        np.testing.assert_allclose(np.std(kernel), std, rtol=0.02)
        assert abs(np.mean(kernel)) < 0.02 * std
    first, second, _ = np.asarray(blocks["mlp"]["up"]["kernel"])
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.03
    assert (np.asarray(blocks["mlp_norm"]["scale"]) == 1).all()


def test_a_reward_head_starts_with_the_spread_of_one_over_the_root_of_the_width():
    definition = ModelDefinition(ScalarModel, gpt2("124M", **TINY | {"width": 256, "heads": 4}))
    params = jax.jit(definition.initialise)(jax.random.key(0))
    # 256 draws: the sample's deviation errs by 4 %. Stiennon et al. 2020, code: 1 / sqrt(d + 1).
    np.testing.assert_allclose(np.std(params["head"]), 1 / 257**0.5, rtol=0.15)


def test_layer_parameters_are_the_slices_of_the_stack(definition):
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), definition.abstract)
    layers = layer_parameters(params)
    assert len(layers) == 3
    for i, layer in enumerate(layers):
        stacked = params["decoder"]["blocks"]
        assert jax.tree.all(jax.tree.map(lambda a, b, i=i: (a == b[i]).all(), layer, stacked))


def test_for_one_row_the_linear_maps_are_transposed_and_nothing_else(definition):
    params = jax.jit(definition.initialise)(jax.random.key(0))
    found = 0
    for plain, single in zip(layer_parameters(params, 2), layer_parameters(params, 1), strict=True):
        single = jax.tree.leaves_with_path(single, is_leaf=lambda x: isinstance(x, TransposedMatrix))
        for (path, ours), theirs in zip(single, jax.tree.leaves(plain), strict=True):
            is_map = path[-1].key == "kernel"
            assert isinstance(ours, TransposedMatrix) == is_map
            assert ((ours.weight_OxI.T if is_map else ours) == theirs).all()
            found += is_map
    assert found >= 3 * 6


def test_flops_per_token_by_hand():
    length, attention = 8, 12 * 3 * 8 * 16
    # One GPT-2 block: 4 D^2 + 8 D^2 weights and 13 D biases and gains; then the final norm and V D once.
    block, final = 12 * 16**2 + 13 * 16, 2 * 16
    tied = ModelDefinition(LanguageModel, gpt2("124M", **TINY))
    assert matmul_flops_per_token(tied, length) == 6 * (3 * block + final + 40 * 16) + attention
    untied = ModelDefinition(LanguageModel, gpt2("124M", **TINY, tied=False))
    assert matmul_flops_per_token(untied, length) == matmul_flops_per_token(tied, length)
    scalar = ModelDefinition(ScalarModel, gpt2("124M", **TINY))
    assert matmul_flops_per_token(scalar, length) == 6 * (3 * block + final + 16 + 1) + attention
