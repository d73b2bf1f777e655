"""Fine-tuning of adapters alone: what is trained, saved, kept, resumed and refused."""

import dataclasses
import json
from pathlib import Path
from signal import SIGKILL, SIGTERM

import jax
import numpy as np
import pytest
import stage_driver
import tiny
from orbax.checkpoint import v1 as ocp

from gptjax.config import ConfigError, to_json
from gptjax.data.corpora import read_documents
from gptjax.data.tokenizers import Tokenizer
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.models.lora import LoraConfig, LoraDefinition, merge, unmerge
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages import finetune
from gptjax.stages.adapters import load_adapters
from gptjax.stages.handover import load_model, save_model
from gptjax.training.loop import RESUBMIT
from gptjax.training.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Sharding info not provided")]
LORA = LoraConfig(rank=2, alpha=4.0, targets=("query", "mlp.up"))
# Killed while it saves, then stopped by SIGTERM at a step that no checkpoint was due at.
DEATHS = [("saving", 2, SIGKILL, -SIGKILL), ("metrics", 1, SIGTERM, RESUBMIT)]


class Runs:
    """An untrained base, and the same fine-tuning undisturbed and stopped twice."""

    def __init__(self, root: Path):
        self.root, self.base = root, root / "base"
        tokenizer = Tokenizer.train([d.text for d in read_documents("pydoc")[:20]], tiny.MODEL.vocab_size)
        params = jax.jit(ModelDefinition(LanguageModel, tiny.MODEL).initialise)(jax.random.key(0))
        save_model(self.base, "language", tiny.MODEL, params, tokenizer)
        stage = tiny.config(tiny.write_data(root / "data")).finetune
        self.config = dataclasses.replace(stage, base=str(self.base), lora=LORA, accumulate=2)
        self.run("whole", expect=0)
        for moment, count, number, code in DEATHS:
            self.run("stopped", die=(moment, count, number), expect=code)
        self.run("stopped", expect=0)

    def run(self, name, *, expect, die=None):
        folder = self.root / name
        process = stage_driver.start(to_json(self.config), folder, self.root / "cache", die)
        process.join()
        assert process.exitcode == expect, self.log(name)[-3000:]

    def log(self, name):
        return Path(f"{self.root / name}.log").read_text("utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def base(runs):
    return load_model(runs.base, make_mesh(MeshConfig()))


@pytest.fixture(scope="module")
def adapters(runs, base):
    return load_adapters(runs.root / "whole", base, make_mesh(MeshConfig()))


def last_checkpoint(folder):
    number = max(int(saved.name) for saved in (folder / "checkpoints").iterdir())
    return ocp.load_checkpointables(folder / "checkpoints" / str(number))["state"]


def assert_same_bits(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other)


def test_the_model_is_the_base_with_the_adapters_merged(runs, base, adapters):
    config, params = adapters
    assert config == LORA
    moved = jax.tree.map(lambda x: float(np.abs(x).max()), params)
    assert min(jax.tree.leaves(moved)) > 1e-4, "B starts at 0: every adapter must have been trained"
    whole = load_model(runs.root / "whole", make_mesh(MeshConfig()), "language").params
    assert_same_bits(jax.jit(merge, static_argnums=2)(base.params, params, config), whole)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)  # noqa: E731
    jax.tree.map(close, jax.jit(unmerge, static_argnums=2)(whole, params, config), base.params)


def test_a_checkpoint_holds_the_adapters_and_their_moments_alone(runs, adapters):
    state, (_, params) = last_checkpoint(runs.root / "whole"), adapters
    assert_same_bits(state["params"], params)
    count = LoraDefinition(ModelDefinition(LanguageModel, tiny.MODEL), LORA).parameter_count
    # The parameters, Adam's two moments, and a few counters.
    assert 0 <= sum(np.size(leaf) for leaf in jax.tree.leaves(state)) - 3 * count < 10


def test_killed_and_stopped_ends_with_the_same_bits(runs):
    log = runs.log("stopped")
    assert log.count("resumed at step") == 2 and "after SIGTERM" in log
    one, other = (runs.root / name for name in ("whole", "stopped"))
    assert_same_bits(last_checkpoint(one), last_checkpoint(other))
    for kept in ("model", "adapters"):
        assert_same_bits(ocp.load(one / kept / "params"), ocp.load(other / kept / "params"))
    lines = [
        [row | {"time": 0, "elapsed": 0} for row in read_metrics(run / "metrics.jsonl")]
        for run in (one, other)
    ]
    assert lines[0] == lines[1]
    figures = [json.loads((run / "done.json").read_text("utf-8"))["heldout"] for run in (one, other)]
    assert figures[0] == figures[1]


def test_the_run_says_what_is_trained(runs):
    count = ModelDefinition(LanguageModel, tiny.MODEL).parameter_count
    # One layer of width 16: the query map has 16 + 16, the first map of the MLP 16 + 64 numbers per rank.
    assert f"adapters are trained, 224 of {count:,} parameters; the base is frozen" in runs.log("whole")


def test_other_settings_do_not_resume(runs):
    changed = dataclasses.replace(runs.config, lora=dataclasses.replace(LORA, rank=4))
    with pytest.raises(ConfigError, match="lora.rank was 2, is 4"):
        finetune.run(changed, runs.root / "whole")


def test_a_misspelt_target_is_refused_before_the_data_is_read(runs, tmp_path):
    lora = LoraConfig(targets=("querry",))
    changed = dataclasses.replace(runs.config, lora=lora, dialogues={"no_such_file.jsonl": 1.0})
    with pytest.raises(ConfigError, match="'querry' names no linear map of the model"):
        finetune.run(changed, tmp_path)


def test_adapters_of_another_base_are_refused(runs):
    mesh = make_mesh(MeshConfig())
    with pytest.raises(ConfigError, match="were trained on the model .* use the model they were trained on"):
        load_adapters(runs.root / "whole", load_model(runs.root / "whole", mesh), mesh)
    with pytest.raises(ConfigError, match="holds no adapters: name a finished fine-tuning run with lora"):
        load_adapters(runs.base, load_model(runs.base, mesh), mesh)
