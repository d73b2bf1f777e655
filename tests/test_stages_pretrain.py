"""Pretraining with a growing batch, and pretraining that goes on from a base whose tokenizer gains tokens."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny

from gptjax.config import ConfigError
from gptjax.data.code_tokens import add_code_tokens, infilling_ids, without_infilling
from gptjax.data.mixture import Mixture
from gptjax.data.packing import lm_batch, pack_documents
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages import pretrain
from gptjax.stages.growth import start_parameters
from gptjax.stages.handover import load_model
from gptjax.stages.language_loss import PLAIN, select
from gptjax.stages.pretrain_data import encode_document
from gptjax.training.batch_ramp import BatchRamp
from gptjax.training.metrics import read_metrics
from gptjax.training.optimizers import OptimizerConfig

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")

# Two sizes: steps of 4 rows until 256 tokens are read, then of 8.
SIZES = [4, 4, 8, 8, 8]


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Programs are kept for the runs after the first."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(tmp_path_factory.mktemp("programs")), 0.0), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    road = tiny.config(tiny.write_data(tmp_path_factory.mktemp("data")))
    ramp = BatchRamp(start=4, tokens=256, sizes=2)
    fast = OptimizerConfig(learning_rate=0.02)  # five steps are to be seen in the loss
    changes = {"ramp": ramp, "optimizer": fast, "compressors": False}
    return replace(road.pretrain, steps=5, save_every=1, eval_every=2, **changes)


@pytest.fixture(scope="module")
def base(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    pretrain.run(config, folder)
    return folder


def done(folder):
    return json.loads((folder / "done.json").read_text("utf-8"))


def test_tokens_are_those_of_the_batches(base):
    lines = read_metrics(base / "metrics.jsonl")
    assert [line["batch_tokens"] for line in lines] == [32 * rows for rows in SIZES]
    assert done(base)["tokens"] == 32 * sum(SIZES)
    assert list(done(base)["glances"]) == ["2", "4", "5"]


@pytest.mark.slow
def test_a_run_interrupted_inside_its_ramp_ends_with_the_same_bits(config, base, tmp_path, monkeypatch):
    whole = Mixture.rows

    def interrupted(self, first, *rest):
        if first == 8:
            raise KeyboardInterrupt
        return whole(self, first, *rest)

    monkeypatch.setattr(Mixture, "rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain.run(config, tmp_path)
    monkeypatch.undo()
    pretrain.run(config, tmp_path)
    assert digest(tmp_path) == digest(base)
    assert done(tmp_path)["heldout"] == done(base)["heldout"]


def digest(folder):
    return json.loads((folder / "model/model.json").read_text("utf-8"))["digest"]


@pytest.mark.slow
def test_a_document_sees_the_one_before_its_separator(base):
    """As in GPT-3: rows are cut from one stream, and no mask stands between its documents."""
    model = load_model(base, make_mesh(MeshConfig()))
    separator = model.tokenizer.end_of_text_id
    packed, _ = pack_documents([[40, 41, 42], [50, 51, 52, 53]], 8, separator)
    assert packed.tolist() == [[40, 41, 42, separator, 50, 51, 52, 53]]
    batch = select(lm_batch(np.concatenate([packed, np.where(packed == 41, 60, packed)])), PLAIN)
    logits = np.asarray(model.definition.apply(model.params, batch["tokens"]))
    assert (logits[0, 0] == logits[1, 0]).all() and (logits[0, 4:] != logits[1, 4:]).any(-1).all()
    assert batch["loss_mask"].all()


def longer(config, base, **model):
    """Pretraining that goes on from `base`, its tokenizer with tokens for code."""
    tokenizer = add_code_tokens(load_model(base, make_mesh(MeshConfig())).tokenizer)
    shape = replace(config.model, vocab_size=tokenizer.vocab_size, **model)
    return replace(config, base=str(base), code_tokens=True, model=shape, ramp=None)


@pytest.mark.slow
def test_old_tokens_keep_their_rows_and_new_ones_are_fresh(config, base):
    model = load_model(base, make_mesh(MeshConfig()))
    definition = ModelDefinition(LanguageModel, longer(config, base).model)
    params = start_parameters(model, str(base), definition, jax.random.key(0))
    old, new = model.params["decoder"]["embedding"], params["decoder"]["embedding"]
    assert (np.asarray(new)[: len(old)] == np.asarray(old)).all()
    assert 0.01 < float(np.asarray(new)[len(old) :].std()) < 0.03
    tokens = np.arange(30)[None]
    before = model.definition.apply(model.params, tokens)
    np.testing.assert_allclose(
        definition.apply(params, tokens)[..., : len(old)], before, rtol=1e-5, atol=1e-6
    )
    assert start_parameters(model, "", model.definition, jax.random.key(0)) is model.params


@pytest.mark.slow
def test_a_run_goes_on_from_its_base(config, base, tmp_path):
    """Its first loss is the base's last, not that of a fresh model."""
    continued = replace(longer(config, base), steps=1, save_every=100, eval_every=1)
    pretrain.run(continued, tmp_path)
    vocab = continued.model.vocab_size
    first = read_metrics(tmp_path / "metrics.jsonl")[0]
    last = read_metrics(base / "metrics.jsonl")[-1]
    assert abs(first["loss"] - last["loss"]) < 0.1 < np.log(vocab) - first["loss"]
    stored = load_model(tmp_path, make_mesh(MeshConfig()))
    assert stored.tokenizer.vocab_size == stored.definition.config.vocab_size == vocab


def test_a_share_of_the_documents_is_rearranged(base):
    code = add_code_tokens(load_model(base, make_mesh(MeshConfig())).tokenizer)
    prefix, middle, suffix = infilling_ids(code)
    rng, text = np.random.default_rng(0), "Some text that is long enough to be cut."
    coded = [encode_document(text, code, 0.5, rng) for _ in range(200)]
    assert all(without_infilling(ids, code) == text for ids in coded)
    rearranged = [ids for ids in coded if prefix in ids]
    suffix_first = [ids for ids in rearranged if ids[1] == suffix and ids.index(middle) > 2]
    assert 70 < len(rearranged) < 130 and 30 < len(suffix_first) < 80
    assert encode_document(text, code, 0.0, rng) == code.encode(text)


def test_a_base_that_does_not_fit_is_refused(config, base, tmp_path):
    with pytest.raises(ConfigError, match=r"model.width = 32, but the base .* was trained with 16"):
        pretrain.run(longer(config, base, width=32), tmp_path / "wide")
    with pytest.raises(ConfigError, match=r"with code_tokens has 4\d\d ids, but model.vocab_size = 384"):
        pretrain.run(replace(longer(config, base), model=config.model), tmp_path / "small")
    with pytest.raises(ConfigError, match="holds no finished model"):
        pretrain.run(replace(longer(config, base), base=str(tmp_path)), tmp_path / "none")


def test_impossible_combinations_are_refused(config):
    with pytest.raises(ValueError, match="base brings its own tokenizer"):
        replace(config, base="runs/x", tokenizer="y.model")
    with pytest.raises(ValueError, match="code_tokens adds to a tokenizer that is there"):
        replace(config, code_tokens=True)
    with pytest.raises(ValueError, match="batch_size = 2 does not divide into 4 mesh parts"):
        replace(config, mesh=MeshConfig(data=4), ramp=BatchRamp(start=2, tokens=9, sizes=3))


@pytest.mark.slow
def test_a_run_that_splits_positions_and_layers_learns_the_same(config, tmp_path, capsys):
    deeper = replace(config, model=replace(config.model, layers=2))
    pretrain.run(deeper, tmp_path / "one")
    mesh = MeshConfig(stage=2, data=2, sequence=2)
    pretrain.run(replace(deeper, mesh=mesh, accumulate=2), tmp_path / "eight")
    assert "2 stages, 2 micro-batches, bubble 33.3%" in capsys.readouterr().out
    one, eight = (done(tmp_path / name)["heldout"] for name in ("one", "eight"))
    assert {name: figures["loss"] for name, figures in eight.items()} == pytest.approx(
        {name: figures["loss"] for name, figures in one.items()}, rel=1e-4
    )
