"""The list of published models: its numbers against what the code makes, and the command that prints it."""

import json
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from gptjax import cli
from gptjax.models.catalogue import (
    FORMATS,
    _amount,
    cache_bytes,
    catalogue,
    catalogue_text,
    derive,
    entry,
)
from gptjax.models.encoder_decoder import EncoderDecoder
from gptjax.models.families import gpt2, llama, transformer
from gptjax.models.functional import ModelDefinition, unstack
from gptjax.models.heads import LanguageModel
from gptjax.models.quantization import (
    WEIGHT_FORMATS,
    QuantizationConfig,
    quantize,
    quantized_bytes,
    tree_bytes,
)
from gptjax.training.optimizers import OptimizerConfig, make_optimizer

TINY = {"vocab_size": 40, "context_length": 12, "width": 16, "layers": 3, "heads": 4}
# What the papers' tables print: layers, width, context, and how many parameters that makes. Contexts are None
# where the paper bounds none. BERT's counts are those of both heads of pre-training.
PAPERS = {
    "transformer": {"base": (6, 512, None, 63_045_632), "big": (6, 1024, None, 214_171_648)},
    "bert": {
        "tiny": (2, 128, 512, 4_433_468),
        "mini": (4, 256, 512, 11_267_900),
        "small": (4, 512, 512, 29_058_876),
        "medium": (8, 512, 512, 41_668_412),
        "base": (12, 768, 512, 110_106_428),
        "large": (24, 1024, 512, 336_226_108),
    },
    "gpt1": {"117M": (12, 768, 512, 116_534_784)},
    "gpt2": {
        "124M": (12, 768, 1024, 124_439_808),
        "355M": (24, 1024, 1024, 354_823_168),
        "774M": (36, 1280, 1024, 774_030_080),
        "1.5B": (48, 1600, 1024, 1_557_611_200),
    },
    "gpt3": {
        "125M": (12, 768, 2048, 125_226_240),
        "350M": (24, 1024, 2048, 355_871_744),
        "760M": (24, 1536, 2048, 760_300_032),
        "1.3B": (24, 2048, 2048, 1_315_723_264),
        "2.7B": (32, 2560, 2048, 2_651_553_280),
        "6.7B": (32, 4096, 2048, 6_658_404_352),
        "13B": (40, 5120, 2048, 12_853_386_240),
        "175B": (96, 12288, 2048, 174_604_259_328),
    },
    "codex": {
        "85M": (12, 768, None, 126_817_536),
        "300M": (24, 1024, None, 357_993_472),
        "679M": (24, 1536, None, 763_482_624),
        "2.5B": (32, 2560, None, 2_656_857_600),
        "12B": (40, 5120, None, 12_863_994_880),
    },
    "llama": {
        "7B": (32, 4096, 2048, 6_738_415_616),
        "13B": (40, 5120, 2048, 13_015_864_320),
        "33B": (60, 6656, 2048, 32_528_943_616),
        "65B": (80, 8192, 2048, 65_285_660_672),
    },
    "llama2": {
        "7B": (32, 4096, 4096, 6_738_415_616),
        "13B": (40, 5120, 4096, 13_015_864_320),
        "34B": (48, 8192, 4096, 33_743_970_304),
        "70B": (80, 8192, 4096, 68_976_648_192),
    },
    "llama3": {
        "8B": (32, 4096, 8192, 8_030_261_248),
        "70B": (80, 8192, 8192, 70_553_706_496),
        "405B": (126, 16384, 8192, 405_853_388_800),
    },
    "llama31": {
        "8B": (32, 4096, 131_072, 8_030_261_248),
        "70B": (80, 8192, 131_072, 70_553_706_496),
        "405B": (126, 16384, 131_072, 405_853_388_800),
    },
    "glm": {
        "110M": (12, 768, 512, 109_283_328),
        "335M": (24, 1024, 512, 334_614_528),
        "10B": (48, 4096, 1024, 9_880_481_792),
    },
    "glm130b": {"130B": (70, 12288, 2048, 128_697_794_560)},
    "chatglm": {"6B": (28, 4096, 2048, 6_173_286_400)},
}


@pytest.fixture(scope="module")
def entries():
    return catalogue()


def test_what_is_stored_is_what_the_declared_shapes_say(entries):
    assert entries == derive(), "the families changed: run python -m gptjax.models.catalogue"
    assert FORMATS == ("float32", "bfloat16", *WEIGHT_FORMATS)


def test_what_is_listed_is_what_the_papers_print(entries):
    listed = {}
    for e in entries:
        _, _, context, _ = PAPERS.get(e["family"], {}).get(e["size"], (None,) * 4)
        shape = e["layers"], e["width"], e["context"] if context else None, e["parameters"]
        listed.setdefault(e["family"], {})[e["size"]] = shape
    assert listed == PAPERS and len(entries) == sum(map(len, PAPERS.values()))
    assert [list(sizes) for sizes in listed.values()] == [list(PAPERS[name]) for name in listed]


def test_gpt2_by_hand(entries):
    """12 layers have 12 x 768^2 numbers in linear maps; the cache is 2 x 12 x 768 x 1,024."""
    (first,) = [e for e in entries if (e["family"], e["size"]) == ("gpt2", "124M")]
    count, maps = 124_439_808, 12 * 12 * 768**2
    shape = ("gpt2", "124M", 12, 768, 1024, count)
    assert tuple(first[k] for k in ("family", "size", "layers", "width", "context", "parameters")) == shape
    # The maps of a layer have 4 x 768 + 3,072 + 768 outputs.
    scales = 4 * 12 * 9 * 768
    assert first["weights"] == {
        "float32": 4 * count,
        "bfloat16": 2 * count,
        "int8": 4 * (count - maps) + maps + scales,
        "int4": 4 * (count - maps) + maps // 2 + scales,
    }
    assert first["training"] == 16 * count
    assert first["cache"] == 2 * 12 * 768 * 1024 * 2


def test_training_is_weights_gradient_and_the_optimiser_s_moments():
    definition = ModelDefinition(LanguageModel, gpt2("124M"))
    optimizer = make_optimizer(OptimizerConfig(), 10, definition.axes)
    moments = tree_bytes(jax.eval_shape(optimizer.init, definition.abstract))
    counters = 8
    assert entry("gpt2", "124M")["training"] == 2 * tree_bytes(definition.abstract) + moments - counters


@pytest.mark.parametrize("config", [gpt2("124M", **TINY), llama("7B", **TINY, kv_heads=2, mlp_width=24)])
def test_cache_and_quantised_bytes_are_those_of_the_arrays(config):
    definition = ModelDefinition(LanguageModel, config)
    caches = jax.eval_shape(lambda p: definition.bind(p).decoder.empty_caches(1, 10), definition.abstract)
    assert 2 * cache_bytes(config, 10) == tree_bytes(caches)  # these are float32
    grouped = QuantizationConfig(bits=4, group_size=8, scale_dtype="bfloat16")
    for small in (QuantizationConfig(bits=8), grouped):
        made = jax.eval_shape(partial(quantize, config=small), definition.abstract)
        assert quantized_bytes(definition.abstract, small) == tree_bytes(made)


def test_an_encoder_decoder_keeps_the_source_too_and_an_encoder_nothing(entries):
    config = transformer("base", **TINY)
    definition = ModelDefinition(EncoderDecoder, config)
    source = jax.ShapeDtypeStruct((1, 10, 16), jnp.float32)

    def caches(params, source):
        model = definition.bind(params)
        return model.empty_caches(1, 10), model.remember(source, unstack(params["decoder"]))

    kept = jax.eval_shape(caches, definition.abstract, source)
    assert tree_bytes(kept) == 2 * cache_bytes(config, 2 * 10)  # these are float32
    of = {(e["family"], e["size"]): e["cache"] for e in entries}
    assert of["transformer", "base"] == 2 * 6 * 512 * (1024 + 1024) * 2
    assert all((of[name, size] is None) == (name == "bert") for name, size in of)


def test_an_odd_number_of_inputs_fills_its_last_byte():
    abstract = {"kernel": jax.ShapeDtypeStruct((2, 5, 3), jnp.float32)}
    small = QuantizationConfig(bits=4)
    made = jax.eval_shape(partial(quantize, config=small), abstract)
    assert quantized_bytes(abstract, small) == tree_bytes(made) == 2 * 3 * 3 + 4 * 2 * 3


def test_amounts_have_three_digits():
    bytes_of = {512: "512 B", 999: "999 B", 1000: "1.00 kB", 12_345: "12.3 kB", 99_960: "100 kB"}
    bytes_of |= {999_499: "999 kB", 999_500: "1.00 MB", 497_759_232: "498 MB", 6_493_654_220_800: "6.49 TB"}
    assert {count: _amount(count) for count in bytes_of} == bytes_of


def test_the_table_has_a_line_a_model_and_straight_columns(entries):
    table, note = catalogue_text(entries).split("\n\n")
    lines = table.splitlines()
    assert len(lines) == 1 + len(entries) and len({len(line) for line in lines}) == 1
    assert re.search(r"^Llama 3 +405B +405,853,388,800 +8,192 ", table, re.MULTILINE)
    assert "AdamW" in note


def test_the_command_needs_no_jax():
    """Loading it takes longer than all the rest."""
    asked = "import sys; from gptjax import cli; cli.main(['models']); sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    assert done.returncode == 0 and "405,853,388,800" in done.stdout


def test_the_command_prints_text_or_json_of_the_families_asked_for(capsys):
    assert cli.main(["models", "llama2", "gpt2"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("Llama 2") < shown.index("GPT-2") and "LLaMA" not in shown
    assert cli.main(["models", "gpt2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == catalogue(["gpt2"])
    assert cli.main(["models", "lama3"]) == 2
    assert (
        "there is no family 'lama3': the nearest is 'llama3' of transformer, bert" in capsys.readouterr().err
    )
