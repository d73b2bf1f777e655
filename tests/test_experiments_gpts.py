"""The experiments of GPT-2, GPT-3, Codex and LLaMA run for two steps on a little data, in their order."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from gptjax.config import load_experiment
from gptjax.data.code_tokens import add_code_tokens
from gptjax.evaluation import zero_shot
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.overrides import override
from gptjax.runs import read_done
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages import pretrain
from gptjax.stages.handover import load_model
from gptjax.training.batch_ramp import BatchRamp

ROOT = Path(__file__).parents[1]
SMALL = {"vocab_size": 384, "context_length": 128, "width": 8, "heads": 2, "mlp_width": 16, "loop": "scan"}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Sharding info not provided")]


def load(name):
    return load_experiment(ROOT / "experiments" / f"{name}.py")


def train(name, folder, text, **changes):
    """Two steps of an experiment in a small size; returns its figures."""
    config = load(name)
    model = replace(config.model, **SMALL | {"layers": 1 if config.model.layers % 2 else 2})
    ramp = config.ramp and BatchRamp(start=2, tokens=64, sizes=2)
    little = {"steps": 2, "batch_size": 4, "length": 32, "heldout_bytes": 500, "corpora": {text: 1.0}}
    config = replace(config, **{"model": model} | little | {"ramp": ramp} | changes)
    pretrain.run(config, folder / name)
    return read_done(folder / name)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return str(tiny.write_data(tmp_path_factory.mktemp("data")) / "text.jsonl")


@pytest.fixture(scope="module")
def ladder(tmp_path_factory, text):
    """The run folder with GPT-2's largest rung in it."""
    folder = tmp_path_factory.mktemp("runs")
    train("gpt2/large", folder, text)
    return folder


def tokenizer_of(ladder):
    return {"tokenizer": str(ladder / "gpt2/large/tokenizer.model")}


@pytest.mark.parametrize(
    "name",
    [
        *(
            "gpt2/medium",
            "gpt2/small",
            "gpt3/large",
            "gpt3/medium",
            "gpt3/small",
            "gpt3/banded",
            "gpt3/no_ramp",
        ),
        *("llama/rotary", "llama/swiglu", "llama/rmsnorm", "llama/llama"),
    ],
)
def test_an_arm_trains(name, ladder, text):
    done = train(name, ladder, text, **tokenizer_of(ladder))
    assert done["tokens"] == (32 * 6 if load(name).ramp else 32 * 8)
    assert list(done["heldout"]) == [text]


def test_models_are_measured_after_them(ladder, text):
    for name in ("gpt2/zero_shot", "gpt3/in_context"):
        config = load(name)
        assert all((ROOT / "experiments" / f"{m.removeprefix('runs/')}.py").exists() for m in config.models)
        own = (str(ladder / "gpt2/large"),)
        config = replace(config, models=own, questions=2, shots=(0, 2), batch_size=4, text_bytes=300)
        zero_shot.run(config, ladder / name)
        assert set(read_done(ladder / name)["models"]) == set(own)


def test_codex_goes_on_from_a_model_of_prose(ladder, tmp_path):
    for number in range(21):
        (tmp_path / f"{number}.py").write_text(f"def f{number}(x):\n    return x + {number}\n" * 20)
    base = load_model(ladder / "gpt2/large", make_mesh(MeshConfig()))
    model = replace(base.definition.config, vocab_size=add_code_tokens(base.tokenizer).vocab_size)
    scratch = train("codex/scratch", ladder, str(tmp_path), model=model, **tokenizer_of(ladder))
    started = train("codex/finetune", ladder, str(tmp_path), model=model, base=str(ladder / "gpt2/large"))
    assert scratch["heldout"].keys() == started["heldout"].keys()
    fresh = load("codex/scratch")
    assert replace(load("codex/finetune"), base="", tokenizer=fresh.tokenizer) == fresh


def test_the_band_is_a_key_of_the_configuration():
    dense, banded = load("gpt3/large"), load("gpt3/banded")
    assert dense.model.band(1) is None and (banded.model.band(0), banded.model.band(1)) == (None, 16)
    assert replace(banded, model=dense.model) == dense
    changed = override(dense, ["--model.attention-band", "32"])
    assert changed.model.band(1) == 32


def test_arms_of_one_comparison_have_equal_parameters_and_tokens():
    base = load("gpt2/large")
    count = ModelDefinition(LanguageModel, base.model).parameter_count
    for name in ("rotary", "swiglu", "rmsnorm", "llama"):
        arm = load(f"llama/{name}")
        assert replace(arm, model=base.model) == base
        own = ModelDefinition(LanguageModel, arm.model).parameter_count
        assert abs(own / count - 1) < 0.04, (name, own, count)
