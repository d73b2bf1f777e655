"""BERT and GPT-1 out and in again, with heads and without, under old names; what does not fit is refused."""

import json
import shutil

import numpy as np
import pytest
from test_interop_huggingface import change, own_run
from wordpiece_vocab import write_vocab

from gptjax.config import ConfigError
from gptjax.data.quality import DataError
from gptjax.data.wordpiece import WordPieceTokenizer
from gptjax.evaluation.embeddings import embed
from gptjax.interop.exporting import export_model
from gptjax.interop.importing import import_model, open_foreign
from gptjax.interop.safetensors import SafetensorsFolder, write_safetensors
from gptjax.models.encoder import EncoderConfig
from gptjax.models.families import gpt1
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages.handover import load_model

pytest.importorskip("tokenizers", reason="tokenizers is not installed (gptjax[hub])")

SHAPE = {"context_length": 32, "width": 16, "layers": 2, "heads": 4}


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory):
    return WordPieceTokenizer.from_vocab(write_vocab(tmp_path_factory.mktemp("vocab")))


@pytest.fixture(scope="module")
def exported(tmp_path_factory, wordpiece):
    """Kind -> an exported folder of BERT, not to be changed."""
    folder = tmp_path_factory.mktemp("exported")
    config = EncoderConfig(vocab_size=wordpiece.vocab_size, mlp_width=24, activation="gelu_erf", **SHAPE)
    for kind in ("masked", "encoder"):
        own_run(folder / f"run-{kind}", config, wordpiece, kind)
        list(export_model(folder / f"run-{kind}", folder / kind))
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of the one with heads, to change."""
    shutil.copytree(exported / "masked", tmp_path / "model")
    return tmp_path / "model"


def loaded(run):
    return load_model(run, make_mesh(MeshConfig()))


def rewrite(folder, tensors):
    shapes = {name: array.shape for name, array in tensors.items()}
    write_safetensors(folder / "model.safetensors", shapes, tensors.items())


def read(folder):
    source = SafetensorsFolder(folder)
    return {name: source.read(name) for name in source.shapes()}


@pytest.mark.parametrize("kind", ["masked", "encoder"])
def test_bert_out_and_in_again_is_the_same_model(exported, tmp_path, kind):
    before, after = (
        loaded(exported / f"run-{kind}"),
        loaded(import_model(exported / kind, tmp_path / "run")),
    )
    assert after.digest == before.digest and after.tokenizer.hash == before.tokenizer.hash
    assert after.definition.config == before.definition.config


def test_gpt1_out_and_in_again_is_the_same_model(tmp_path, byte_level):
    own_run(tmp_path / "run", gpt1("117M", vocab_size=320, **SHAPE), byte_level)
    list(export_model(tmp_path / "run", tmp_path / "out"))
    assert json.loads((tmp_path / "out/config.json").read_text())["model_type"] == "openai-gpt"
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"] == [0, 2]
    assert loaded(import_model(tmp_path / "out", tmp_path / "in")).digest == loaded(tmp_path / "run").digest


def test_old_names_copies_and_counts_are_understood(exported, folder, tmp_path):
    tensors = {}
    for name, array in read(folder).items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        tensors[name] = array
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
    tensors["bert.embeddings.position_ids"] = np.zeros((1, 32), np.float32)
    rewrite(folder, tensors)
    (folder / "tokenizer.json").unlink()
    shutil.copy(write_vocab(tmp_path), folder / "vocab.txt")
    after = loaded(import_model(folder, tmp_path / "run"))
    assert after.digest == loaded(exported / "run-masked").digest
    assert after.tokenizer.encode("unaffable") == loaded(exported / "run-masked").tokenizer.encode(
        "unaffable"
    )
    rewrite(folder, tensors | {"cls.predictions.decoder.bias": tensors["cls.predictions.bias"] + 1})
    with pytest.raises(DataError, match=r"cls.predictions.decoder.bias differs from cls.predictions.bias"):
        open_foreign(folder)


def test_a_file_without_the_next_sentence_s_head_has_a_head_of_0(folder, tmp_path, capsys):
    change(folder, architectures=["BertForMaskedLM"])
    left = ("bert.pooler.", "cls.seq_relationship.")
    rewrite(folder, {name: array for name, array in read(folder).items() if not name.startswith(left)})
    params = loaded(import_model(folder, tmp_path / "run")).params
    assert not np.any(params["next_sentence"]["kernel"]) and not np.any(params["pooler"]["kernel"])
    assert "the file lacks the head of the next sentence, which is 0: bert.pooler" in capsys.readouterr().out


def test_an_encoder_of_a_file_with_heads_leaves_them_out_aloud(folder, exported, tmp_path, capsys):
    change(folder, architectures=["BertModel"])
    params = loaded(import_model(folder, tmp_path / "run")).params
    assert set(params) == {"encoder"} and "9 tensors are left out: bert.pooler" in capsys.readouterr().out


def test_a_file_without_the_prefix_is_an_encoder(exported, tmp_path):
    """As sentence-transformers writes them, with the pooler."""
    folder = tmp_path / "model"
    shutil.copytree(exported / "encoder", folder)
    tensors = {name.removeprefix("bert."): array for name, array in read(folder).items()}
    rewrite(folder, tensors | {"pooler.dense.weight": np.ones((16, 16), np.float32)})
    assert loaded(import_model(folder, tmp_path / "run")).digest == loaded(exported / "run-encoder").digest


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"architectures": ["BertForSequenceClassification"]}, "must end in ForPreTraining"),
        ({"architectures": ["BertForQuestionAnswering"]}, "the architecture"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'"),
        ({"type_vocab_size": 3}, r"token_type_embeddings.weight \[2, 16\] instead of \[3, 16\]"),
        ({"num_hidden_layers": 10**6}, "too few for 1000000 layers"),
        ({"layer_norm_eps": "small"}, "cannot be"),
    ],
)
def test_what_gptjax_does_not_have_is_refused(folder, values, sentence):
    change(folder, **values)
    with pytest.raises(DataError, match=sentence):
        open_foreign(folder)


def test_a_tensor_under_two_names_is_refused(folder):
    tensors = read(folder)
    tensors["bert.embeddings.LayerNorm.gamma"] = tensors["bert.embeddings.LayerNorm.weight"]
    rewrite(folder, tensors)
    with pytest.raises(DataError, match="under an old and a new name"):
        open_foreign(folder)


def test_embeddings_are_means_of_length_1(exported):
    model = loaded(exported / "run-encoder")
    texts = ["an able banana", "an", "the " * 100]
    found = embed(model, texts, batch_size=2)
    tokens = [model.tokenizer.cls_id, *model.tokenizer.encode(texts[0]), model.tokenizer.sep_id]
    mean = np.asarray(model.definition.apply(model.params, np.array([tokens])))[0].mean(0)
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)


def test_embeddings_need_an_encoder(tmp_path, byte_level):
    own_run(tmp_path / "run", gpt1("117M", vocab_size=320, **SHAPE), byte_level)
    with pytest.raises(ConfigError, match="need an encoder"):
        embed(loaded(tmp_path / "run"), ["x"])
