"""BERT's pre-training, and fine-tuning from it and from a GPT: what is left, resumed and refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from wordpiece_vocab import VOCAB, write_vocab

from gptjax.config import ConfigError
from gptjax.data.masking import MaskingConfig
from gptjax.data.quality import DataError
from gptjax.data.tokenizers import Tokenizer
from gptjax.data.wordpiece import WordPieceTokenizer
from gptjax.models.encoder import EncoderConfig
from gptjax.models.families import gpt1
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.runs import read_done
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages import classify, masked
from gptjax.stages.classify import ClassifyConfig, with_trunk
from gptjax.stages.handover import load_model, save_model
from gptjax.stages.masked import MaskedConfig, find_tokenizer
from gptjax.training.metrics import read_metrics

pytestmark = pytest.mark.slow

pytest.importorskip("tokenizers", reason="tokenizers is not installed (gptjax[hub])")
SHAPE = {"context_length": 32, "width": 16, "layers": 1, "heads": 2, "loop": "unroll"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Texts, a vocabulary, a pretrained BERT, an untrained GPT-1, and questions with two answers."""
    root = tmp_path_factory.mktemp("objectives")
    tiny.write_data(root / "data")
    write_vocab(root)
    masked.run(masked_config(root), root / "bert")
    tokenizer = Tokenizer.train(["the cat sat on the mat, and it was good. " * 50], 290)
    definition = ModelDefinition(LanguageModel, gpt1("117M", vocab_size=290, **SHAPE))
    params = jax.jit(definition.initialise)(jax.random.key(0))
    save_model(root / "gpt", "language", definition.config, params, tokenizer)
    rows = [{"text": f"the {n}", "answers": ["cat", f"{n} mat"], "label": n % 2} for n in range(40)]
    write(root / "choices.jsonl", rows)
    write(root / "labelled.jsonl", [{"text": f"it is {n} and the rest", "label": n % 3} for n in range(80)])
    return root


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def masked_config(root, **changes):
    shape = {
        "model": EncoderConfig(vocab_size=len(VOCAB), **SHAPE),
        "corpora": {str(root / "data" / "text.jsonl"): 1.0},
        "tokenizer": str(root / "vocab.txt"),
        "masking": MaskingConfig(max_predictions=5, copies=1),
        "optimizer": tiny.ADAM,
        "length": 32,
        "batch_size": 8,
        "steps": 8,
        "save_every": 4,
        "eval_every": 4,
        "heldout_bytes": 2000,
    }
    return MaskedConfig(**shape | changes)


def classify_config(root, base, **changes):
    sizes = {"length": 24, "batch_size": 4, "steps": 4, "save_every": 2, "optimizer": tiny.ADAM}
    return ClassifyConfig(base=str(root / base), **sizes | changes)


def test_a_pretrained_bert(root):
    done = read_done(root / "bert")
    figures = next(iter(done["heldout"].values()))
    assert done["tokens"] == 8 * 8 * 32 and figures["rows"] > 5
    assert 0 < figures["masked_loss"] < 2 * np.log(len(VOCAB))
    assert 0 <= figures["masked_accuracy"] <= 1 and 0.5 <= figures["commoner_label"] <= 1
    rows = read_metrics(root / "bert" / "metrics.jsonl")
    first, last = rows[0], rows[-1]
    assert last["loss"] < first["loss"] and any(name.startswith("heldout/") for name in last)
    assert first["loss"] == pytest.approx(first["masked_loss"] + first["next_sentence_loss"], rel=1e-5)
    model = load_model(root / "bert", make_mesh(MeshConfig()), "masked")
    assert isinstance(model.tokenizer, WordPieceTokenizer) and model.tokenizer.vocab_size == len(VOCAB)


def test_pretraining_resumes_with_the_same_bits(root):
    """From the checkpoint in the middle of a finished run, in which the rows are made again."""
    again = shutil.copytree(root / "bert", root / "bert-again")
    shutil.rmtree(again / "model")
    (again / "done.json").unlink()
    shutil.rmtree(again / "checkpoints" / "8")
    masked.run(masked_config(root), again)
    digests = [json.loads((run / "model/model.json").read_text())["digest"] for run in (root / "bert", again)]
    assert digests[0] == digests[1]
    masked.run(masked_config(root), again)  # done: nothing happens


def test_the_tokenizer_of_a_bert(root, tmp_path):
    config = masked_config(root, tokenizer=None, model=EncoderConfig(vocab_size=400, **SHAPE))
    documents = {name: masked.read_documents(name) for name in config.corpora}
    trained = find_tokenizer(config, tmp_path, documents)
    assert trained.vocab_size == 400 and trained.mask_id == 7
    assert find_tokenizer(config, tmp_path, {}).hash == trained.hash  # the stored one
    with pytest.raises(ConfigError, match="has 400 ids, but model.vocab_size = 401"):
        find_tokenizer(
            dataclasses.replace(config, model=EncoderConfig(vocab_size=401, **SHAPE)), tmp_path, {}
        )
    with pytest.raises(ConfigError, match=r"vocab.txt has \d+ ids"):
        find_tokenizer(masked_config(root, model=config.model), tmp_path / "another run", {})
    with pytest.raises(ValueError, match="longer than model.context_length"):
        masked_config(root, length=33)


def test_a_classifier_from_bert(root):
    config = classify_config(root, "bert", source=str(root / "labelled.jsonl"), examples=40, eval_every=2)
    classify.run(config, root / "sentiment")
    figures = read_done(root / "sentiment")["heldout"]
    assert 1 <= figures["examples"] < 20 and 1 / 3 <= figures["commonest_label"] <= 1
    assert 0 <= figures["accuracy"] <= 1 and "language_loss" not in figures
    model = load_model(root / "sentiment", make_mesh(MeshConfig()), "classifier")
    assert model.definition.config.classes == 3 and set(model.params) == {"encoder", "pooler", "head"}
    rows = read_metrics(root / "sentiment" / "metrics.jsonl")
    assert rows[1]["heldout_accuracy"] >= 0 and rows[-1]["heldout_loss"] == figures["loss"]


def test_a_choice_from_gpt1(root):
    choice = {"source": str(root / "choices.jsonl"), "form": "choice", "lm_weight": 0.5}
    classify.run(classify_config(root, "gpt", **choice), root / "choice")
    first = read_metrics(root / "choice" / "metrics.jsonl")[0]
    assert first["language_loss"] == pytest.approx(np.log(293), rel=0.05)
    assert first["loss"] == pytest.approx(np.log(2), rel=0.1)
    model = load_model(root / "choice", make_mesh(MeshConfig()), "classifier")
    assert model.definition.config.trunk.vocab_size == 293 and model.definition.config.classes is None


def test_the_trunk_is_the_base_and_new_rows_are_fresh(root):
    mesh = make_mesh(MeshConfig())
    base, choice = load_model(root / "gpt", mesh), load_model(root / "choice", mesh)
    fresh = jax.tree.map(lambda x: x + 1, choice.params)
    params = with_trunk(fresh, base)
    embedding = params["language"]["decoder"]["embedding"]
    assert (embedding[:290] == base.params["decoder"]["embedding"]).all()
    assert (embedding[290:] == fresh["language"]["decoder"]["embedding"][290:]).all()
    blocks = zip(
        *(jax.tree.leaves(x["decoder"]["blocks"]) for x in (params["language"], base.params)), strict=True
    )
    assert all((ours == theirs).all() for ours, theirs in blocks)
    assert (params["head"]["kernel"] == fresh["head"]["kernel"]).all()


def test_without_pretraining_nothing_of_the_base_is_left(root, monkeypatch):
    started = []
    monkeypatch.setattr(classify, "with_trunk", lambda *_: pytest.fail("the base's weights are used"))
    monkeypatch.setattr(classify, "run_loop", lambda state, *_: started.append(state) or state)
    monkeypatch.setattr(classify, "summed", lambda *_: {"accuracy": 0.0, "loss": 0.0})
    config = classify_config(root, "gpt", fresh=True, source=str(root / "labelled.jsonl"))
    classify.run(config, root / "fresh")
    assert started[0].params["language"]["decoder"]["embedding"].shape == (293, 16)


def test_refusals(root, tmp_path):
    with pytest.raises(ConfigError, match="no base model"):
        classify.run(ClassifyConfig(length=8, batch_size=2, steps=1), tmp_path / "a")
    with pytest.raises(ConfigError, match="set lm_weight to 0"):
        classify.run(classify_config(root, "bert", lm_weight=0.5), tmp_path / "b")
    with pytest.raises(ConfigError, match="holds a classifier model"):
        classify.run(classify_config(root, "choice"), tmp_path / "c")
    with pytest.raises(ConfigError, match="length = 40 is longer"):
        classify.run(classify_config(root, "bert", length=40), tmp_path / "d")
    source = write(tmp_path / "one.jsonl", [{"text": f"t{n}", "label": 1} for n in range(20)])
    with pytest.raises(DataError, match=r"has the labels \[1\]"):
        classify.run(classify_config(root, "bert", source=source), tmp_path / "e")
