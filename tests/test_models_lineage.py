"""The systems of the lineage against stored numbers of other implementations, and their published sizes.

The numbers are those of torch, transformers and numpy, by `UPDATE_GOLDEN=1 pytest tests/parity`.
"""

import dataclasses
import json
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import lineage
import numpy as np
import pytest
from documentation import table

from gptjax.config import ConfigError, from_json, to_json
from gptjax.generation.decode import decode, left_pad, request_keys
from gptjax.generation.sampling import SamplingConfig
from gptjax.losses.lm import token_log_probs
from gptjax.models.families import bert, gpt1, gpt2, gpt3, llama3, llama31, transformer
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.models.rotary import RotaryScaling, convert_pairing, repair_channels, scale_frequencies
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.sharding.rules import parameter_shardings

CASES = {
    "bert": lineage.bert_case,
    "bert_erf": partial(lineage.bert_case, "gelu_erf"),
    "gpt1": lineage.gpt1_case,
    "gpt2": lineage.gpt2_case,
    "gpt3": lineage.gpt3_case,
    "llama": lineage.llama_case,
    "llama_grouped": partial(lineage.llama_case, kv_heads=2),
    "llama31": lineage.llama31_case,
    "transformer": lineage.transformer_case,
}
# The formula of GPT-2 and GPT-3 is N (12 D^2 + 13 D) + (V + C) D + 2 D; GPT-1 has no final norm, no 2 D.
DECODERS = [
    (gpt1, "117M", 116_534_784),
    (gpt3, "125M", 125_226_240),
    (gpt3, "350M", 355_871_744),
    (gpt3, "760M", 760_300_032),
    (gpt3, "1.3B", 1_315_723_264),
    (gpt3, "2.7B", 2_651_553_280),
    (gpt3, "6.7B", 6_658_404_352),
    (gpt3, "13B", 12_853_386_240),
    (gpt3, "175B", 174_604_259_328),
    (llama31, "8B", 8_030_261_248),
    (llama31, "70B", 70_553_706_496),
    (llama31, "405B", 405_853_388_800),
]


# Each is a program to compile: of those that differ by little one stands for all where tests must be quick.
QUICK = ("bert", "gpt1", "gpt3", "llama31", "transformer")
EVERY_CASE = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]


@cache
def figures(name):
    return lineage.figures(CASES[name]())


@pytest.mark.parametrize("name", EVERY_CASE)
def test_logits_and_gradients_are_the_stored_ones(name):
    lineage.check_figures(name, *figures(name))


@pytest.mark.parametrize("name", QUICK)
def test_one_device_equals_eight(name):
    """Every parameter's axes have rules, and the logits do not depend on how the mesh splits them."""
    definition, params, logits_of = CASES[name]()
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = parameter_shardings(mesh, definition.abstract, definition.axes)
    placed = jax.tree.map(jax.device_put, params, shardings)
    assert sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(placed)) > 8
    with jax.set_mesh(mesh):
        spread = jax.jit(logits_of)(placed)
    for ours, alone in zip(jax.tree.leaves(spread), jax.tree.leaves(figures(name)[0]), strict=True):
        np.testing.assert_allclose(ours, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt1", "gpt3", "llama31"])
def test_log_probs_of_sampling_with_a_cache_equal_teacher_forcing(name):
    definition, params, _ = CASES[name]()
    prompts, new = [[5, 6, 7], [1, 2, 3, 4, 8, 9]], 8
    tokens, mask = left_pad(prompts, 0, 6)
    settings = {"sampling": SamplingConfig(max_new_tokens=new), "stop_sequences": (), "pad_id": 0}
    replies = jax.jit(
        lambda params: decode(definition, params, tokens, mask, request_keys([0, 1]), **settings)
    )(params)
    apply = jax.jit(definition.apply)
    for row, prompt in enumerate(prompts):
        whole = prompt + np.asarray(replies.tokens[row]).tolist()
        padded = np.array([whole + [0] * (15 - len(whole))])  # causal: what follows changes nothing
        log_probs = token_log_probs(apply(params, padded[:, :-1]), padded[:, 1:])[0]
        replied = log_probs[len(prompt) - 1 : len(whole) - 1]
        np.testing.assert_allclose(replies.log_probs[row], replied, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "size", "count"), DECODERS, ids=lambda x: getattr(x, "__name__", x))
def test_parameter_counts_of_the_decoders(family, size, count):
    assert ModelDefinition(LanguageModel, family(size)).parameter_count == count


@pytest.mark.parametrize(
    ("size", "millions"),
    {
        "125M": 125,
        "350M": 356,
        "760M": 760,
        "1.3B": 1320,
        "2.7B": 2650,
        "6.7B": 6660,
        "13B": 12850,
        "175B": 174600,
    }.items(),
)
def test_gpt3_counts_are_those_of_its_appendix(size, millions):
    """Table D.1 prints them in millions, to three or four digits."""
    count = ModelDefinition(LanguageModel, gpt3(size)).parameter_count
    assert abs(count / 1e6 / millions - 1) < 0.005


def test_unknown_sizes_name_the_known_ones():
    with pytest.raises(ConfigError, match="GPT-1 was not published in size '124M': use one of 117M"):
        gpt1("124M")
    with pytest.raises(ConfigError, match="GPT-3 was not published in size '1B': use one of 125M, 350M"):
        gpt3("1B")


def test_post_norm_ends_without_a_norm_and_starts_without_residual_scaling():
    config = gpt1("117M", **lineage.TINY | {"width": 64, "layers": 8})
    definition = ModelDefinition(LanguageModel, config)
    assert "norm" not in definition.abstract["decoder"]
    params = jax.jit(definition.initialise)(jax.random.key(0))
    blocks = params["decoder"]["blocks"]
    # Radford et al. 2018, code: N(0, 0.02) for every weight. The smallest array has 1,024 draws: 2 % off.
    for array in (
        params["decoder"]["positions"],
        blocks["attention"]["output"]["kernel"],
        blocks["mlp"]["down"]["kernel"],
    ):
        np.testing.assert_allclose(np.std(array), 0.02, rtol=0.08)


@pytest.mark.parametrize(
    ("family", "change", "sentence"),
    [
        (gpt3, {"layers": 3}, "layers = 3 must be even"),
        (gpt3, {"attention_band": 0}, "attention_band\n.*greater than or equal to 1"),
        (llama31, {"positions": "learned"}, "rotary_scaling needs rotary positions"),
        (gpt1, {"norm_place": "middle"}, "norm_place"),
    ],
)
def test_impossible_styles_are_refused(family, change, sentence):
    sizes = {gpt1: "117M", gpt3: "125M", llama31: "8B"}
    with pytest.raises(ValueError, match=sentence):
        family(sizes[family], **lineage.TINY | {"kv_heads": 2} | change)


def test_rotary_scaling_by_hand():
    """One wavelength of each kind: a short one stays, a long one grows eightfold, 256 / 3 lies midway."""
    scaling = RotaryScaling(original_context=256, low_frequency_factor=1.0, high_frequency_factor=5.0)
    frequency = 2 * np.pi / np.array([256 / 5 - 1, 256 + 1, 256 / 3])
    scaled = scale_frequencies(jnp.asarray(frequency, jnp.float32), scaling)
    np.testing.assert_allclose(scaled, frequency * [1, 1 / 8, (1 + 1 / 8) / 2], rtol=1e-6)
    with pytest.raises(ValueError, match="low_frequency_factor = 4.0 must be below"):
        RotaryScaling(low_frequency_factor=4.0)


@pytest.mark.parametrize("bias", [False, True])
def test_converted_weights_give_the_same_logits_in_the_other_pairing(bias):
    definition, params, _ = lineage.llama31_case()
    config = dataclasses.replace(definition.config, bias=bias)
    definition = ModelDefinition(LanguageModel, config)
    params = lineage.random_params(definition)
    other = ModelDefinition(LanguageModel, dataclasses.replace(config, rotary_pairing="interleaved"))
    converted = convert_pairing(params, config.head_size, "interleaved")
    logits, same = definition.apply(params, lineage.TOKENS), other.apply(converted, lineage.TOKENS)
    np.testing.assert_allclose(same, logits, rtol=1e-5, atol=1e-5)
    assert np.abs(other.apply(params, lineage.TOKENS) - logits).max() > 0.1
    back = convert_pairing(converted, config.head_size, "half")
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), back, params))


def test_conversion_is_hugging_face_s_permutation():
    """It maps Meta's W [outputs, inputs] by `view(h, c / 2, 2, d).transpose(1, 2).reshape(h c, d)`."""
    meta = np.random.default_rng(0).normal(size=(3 * 8, 5))
    theirs = meta.reshape(3, 4, 2, 5).swapaxes(1, 2).reshape(3 * 8, 5)
    np.testing.assert_array_equal(repair_channels(meta.T, 8, "half"), theirs.T)


@pytest.mark.parametrize(
    "config",
    [gpt1("117M"), gpt3("175B"), llama31("8B"), bert("base"), transformer("big")],
    ids=lambda c: str(c.width),
)
def test_configurations_survive_json(config):
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_a_configuration_written_before_these_models_loads():
    """Finished models of 0.1.0 name none of the new fields."""
    config, stored = gpt2("124M"), to_json(gpt2("124M"))
    for name in ("norm_place", "rotary_scaling", "attention_band"):
        del stored[name]
    assert from_json(stored) == config


def test_every_row_of_the_page_links_to_its_code():
    """`test_code_links.py` follows the links."""
    rows = table("docs/lineage.md", "Where it is")
    assert len(rows) > 25
    for _, _, link, _ in rows:
        assert re.fullmatch(r"\[\w+\]\(\.\./gptjax/[\w/]+\.py#L\d+\)", link), link


def test_llama31_is_llama3_with_a_longer_context():
    changed = llama31("8B", rotary_scaling=None, context_length=8192)
    assert changed == llama3("8B")
