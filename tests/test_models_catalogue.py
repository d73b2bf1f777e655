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
from gptjax.models.families import FAMILIES, gpt2, llama
from gptjax.models.functional import ModelDefinition
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


@pytest.fixture(scope="module")
def entries():
    return catalogue()


def test_what_is_stored_is_what_the_declared_shapes_say(entries):
    assert entries == derive(), "the families changed: run python -m gptjax.models.catalogue"
    assert FORMATS == ("float32", "bfloat16", *WEIGHT_FORMATS)


def test_every_family_and_size_is_listed_once(entries):
    listed = [(e["family"], e["size"]) for e in entries]
    assert listed == [(name, size) for name, family in FAMILIES.items() for size in family.sizes]
    assert len(set(listed)) == len(listed) >= 12
    assert ("llama3", "405B") in listed


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
