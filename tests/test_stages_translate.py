"""The translation stage: its loss, what it leaves behind, and that a killed run ends the same."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from gptjax.config import ConfigError
from gptjax.data.parallel import pair_rows
from gptjax.generation.beam import BeamConfig
from gptjax.generation.translator import Translator
from gptjax.losses.lm import cross_entropy
from gptjax.models.encoder_decoder import EncoderDecoder
from gptjax.models.families import transformer
from gptjax.models.functional import ModelDefinition
from gptjax.runs import read_done
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages import translate
from gptjax.stages.handover import load_model
from gptjax.stages.language_loss import count_tokens
from gptjax.stages.sharded import create_state
from gptjax.stages.translate import TranslateConfig, make_translation_loss
from gptjax.training.checkpoint import Checkpoints
from gptjax.training.optimizers import make_optimizer

pytest.importorskip("sacrebleu", reason="sacrebleu is not installed (pip install gptjax[data])")
MODEL = transformer(
    "base", vocab_size=384, context_length=48, width=16, layers=1, heads=2, dropout=0.1, loop="unroll"
)

pytestmark = pytest.mark.slow


def config(data, **changes):
    settings = {
        "model": MODEL,
        "pairs": str(data / "pairs.jsonl"),
        "source": "lower",
        "target": "upper",
        "lengths": (40,),
        "batch_tokens": 160,
        "steps": 6,
        "average": 2,
        "translated": 5,
        "search": BeamConfig(beams=2, extra_tokens=4),
        "optimizer": tiny.ADAM,
        "save_every": 2,
        "eval_every": 3,
    }
    return TranslateConfig(**settings | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    tiny.write_pairs(folder)
    return folder


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "translate"
    translate.run(config(data), folder)
    return folder


def test_the_loss_is_the_smoothed_cross_entropy_of_the_logits_whatever_the_padding():
    definition = ModelDefinition(EncoderDecoder, dataclasses.replace(MODEL, vocab_size=40))
    params = jax.jit(definition.initialise)(jax.random.key(0))
    pairs = [([5, 6, 7, 8], [9, 10]), ([11], [12, 13, 14])]
    batch = pair_rows(pairs, 4, 2)
    sources, mask = batch["sources"], jnp.asarray(batch["source_mask"])
    logits = jax.jit(definition.apply)(params, sources, batch["tokens"], source_segment_ids=mask)
    expected, _ = cross_entropy(
        logits, batch["targets"], batch["loss_mask"], label_smoothing=0.2, smooth_over="others"
    )
    batch = pair_rows(pairs, 9, 2)
    loss_fn = jax.jit(make_translation_loss(definition, 0.2, "others"))
    loss, metrics = loss_fn(params, batch, count_tokens(batch), None)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"] + metrics["smoothing"], expected, rtol=1e-5)


def test_what_a_run_leaves_behind(finished, data):
    figures = read_done(finished)["heldout"]
    assert set(figures) == {"copied", "last", "averaged"}
    for name in ("last", "averaged"):
        assert set(figures[name]) == {"loss", "perplexity", "bleu_greedy", "bleu_beam"}
        np.testing.assert_allclose(figures[name]["perplexity"], math.exp(figures[name]["loss"]))
    samples = [json.loads(line) for line in (finished / "samples.jsonl").read_text("utf-8").splitlines()]
    assert len(samples) == 5 and all(sample["reference"] == sample["source"].upper() for sample in samples)
    model = load_model(finished, make_mesh(MeshConfig()), "translation")
    search = config(data).search
    translator = Translator(model.definition, model.params, model.tokenizer, search)
    sources = [sample["source"] for sample in samples]
    assert translator(sources) == [sample["averaged_beam"] for sample in samples]
    assert translator(sources[:1], batch_size=1) == [samples[0]["averaged_beam"]]
    with pytest.raises(ValueError, match="tokens, but the model reads at most 48: cut it"):
        translator(["a long one " * 40])
    with pytest.raises(ConfigError, match="holds a translation model where a language model is needed"):
        load_model(finished, make_mesh(MeshConfig()), "language")


def test_the_model_is_the_mean_of_the_last_checkpoints(finished):
    model = load_model(finished, make_mesh(MeshConfig()), "translation")
    assert sorted(f.name for f in (finished / "checkpoints").iterdir() if f.name.isdigit()) == ["4", "6"]
    mesh = make_mesh(MeshConfig())
    optimizer = make_optimizer(tiny.ADAM, 6, model.definition.axes)
    like = create_state(model.definition, optimizer, mesh, key=jax.random.key(1))
    checkpoints = Checkpoints(finished / "checkpoints", {"tokenizer": model.tokenizer.hash})
    parts = [checkpoints.restore(step, like).params for step in (4, 6)]
    checkpoints.close()
    for ours, *theirs in zip(*map(jax.tree.leaves, (model.params, *parts)), strict=True):
        np.testing.assert_allclose(ours, np.mean(theirs, 0), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_model(finished, data, tmp_path, monkeypatch):
    """Killed after its second checkpoint."""
    monkeypatch.setattr(translate, "evaluate", lambda *_: {})
    save = Checkpoints.save

    class Killed(Exception):
        pass

    def dying(self, step, state):
        save(self, step, state)
        if step == 4:
            self.close()
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "save", dying)
        translate.run(config(data), tmp_path / "run")
    translate.run(config(data), tmp_path / "run")
    digests = [
        json.loads((f / "model/model.json").read_text("utf-8"))["digest"]
        for f in (finished, tmp_path / "run")
    ]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lengths": (40, 20)}, r"lengths = \[40, 20\] must rise"),
        ({"lengths": (40, 64), "batch_tokens": 640}, "64 is longer than model.context_length = 48"),
        ({"batch_tokens": 100}, "batch_tokens = 100 is not a multiple of the length 40"),
        ({"leave_out": "("}, "is not a regular expression"),
        ({"mesh": MeshConfig(data=3)}, "does not divide into 3 mesh parts"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(data, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        config(data, **changes)


def test_pairs_that_are_left_out_are_counted(data, tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"no training pair of .* fits in 2 tokens: raise lengths"):
        translate.run(config(data, lengths=(2,), leave_out="[0-9]"), tmp_path / "short")
    printed = capsys.readouterr().out
    assert "pairs hold '[0-9]': left out" in printed
