"""GGUF out: what our reader, the package `gguf` and another writer's rules say of the file."""

import jax
import numpy as np
import pytest
from test_interop_huggingface import CONFIGS, own_run

from gptjax import cli
from gptjax.config import ConfigError
from gptjax.data.chat_templates import ChatForm
from gptjax.data.sentencepieces import SentencePieceTokenizer
from gptjax.data.tokenizers import Tokenizer
from gptjax.interop.gguf import GgufFile
from gptjax.interop.gguf_model import rope_factors
from gptjax.interop.gguf_writing import export_gguf
from gptjax.interop.importing import import_model
from gptjax.models.rotary import RotaryScaling
from gptjax.models.transformer import DecoderConfig
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages.handover import load_model

pytest.importorskip("tokenizers", reason="tokenizers is not installed (gptjax[hub])")
gguf = pytest.importorskip("gguf", reason="gguf is not installed (gptjax[hub])")

WIDE = {"width": 64, "mlp_width": 96, "vocab_size": 333}
TEXTS = ["Hello  world 123", "é 漢字 😀\n\n", "<|im_end|> x"]


def config(family, **changes):
    return CONFIGS[family].__class__(**vars(CONFIGS[family]) | WIDE | changes)


def loaded(folder):
    return load_model(folder, make_mesh(MeshConfig()))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_out_and_in_again_is_the_same_model(tmp_path, byte_level, family):
    own_run(tmp_path / "run", config(family), byte_level, chat=ChatForm("Be brief"))
    list(export_gguf(tmp_path / "run", tmp_path / "m.gguf"))
    before, after = loaded(tmp_path / "run"), loaded(import_model(tmp_path / "m.gguf", tmp_path / "again"))
    assert after.digest == before.digest and after.chat.system_message == "Be brief"
    assert after.tokenizer.vocab_size == 320  # the model's other 13 ids are unused pieces in the file
    for text in TEXTS:
        assert after.tokenizer.encode(text) == before.tokenizer.encode(text)
    assert after.tokenizer.specials == before.tokenizer.specials


@pytest.mark.parametrize(("precision", "kind", "error"), [("f16", "F16", 1e-3), ("q8_0", "Q8_0", 1e-2)])
def test_other_precisions_and_what_the_package_reads(tmp_path, byte_level, precision, kind, error):
    params = own_run(tmp_path / "run", config("llama"), byte_level)
    list(export_gguf(tmp_path / "run", tmp_path / "m.gguf", precision))
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.attn_q.weight"] == kinds["token_embd.weight"] == kind
    assert kinds["blk.1.attn_norm.weight"] == kinds["output_norm.weight"] == "F32"
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["llama.attention.head_count_kv"].contents() == 2
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == 333
    (down,) = (tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_down.weight")
    numbers = gguf.dequantize(down.data, down.tensor_type)
    ours = params["decoder"]["blocks"]["mlp"]["down"]["kernel"][1].T
    np.testing.assert_allclose(numbers, ours, rtol=0, atol=error)
    after = loaded(import_model(tmp_path / "m.gguf", tmp_path / "again"))
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=error)


def test_pairs_of_rotary_channels_lie_together(tmp_path, byte_level):
    """Row 2i of a head is channel i of ours, row 2i + 1 is channel i + C / 2; a model of that order stays."""
    for pairing, order in (("half", [0, 8, 1, 9, 2]), ("interleaved", [0, 1, 2, 3, 4])):
        folder = tmp_path / pairing
        folder.mkdir()
        params = own_run(folder / "run", config("llama", rotary_pairing=pairing), byte_level)
        list(export_gguf(folder / "run", folder / "m.gguf"))
        query = params["decoder"]["blocks"]["attention"]["query"]["kernel"][1]
        written = GgufFile(folder / "m.gguf").read("blk.1.attn_q.weight")
        np.testing.assert_array_equal(written[16:21], query.T[16:][order])


def test_the_sentencepiece_tokenizer_goes_along(tmp_path, tokenizer):
    own_run(tmp_path / "run", config("gpt2", vocab_size=1030), tokenizer)
    list(export_gguf(tmp_path / "run", tmp_path / "m.gguf"))
    after = loaded(import_model(tmp_path / "m.gguf", tmp_path / "again")).tokenizer
    assert isinstance(after, Tokenizer) and after.vocab_size == 1024
    for text in TEXTS:
        assert after.encode(text) == tokenizer.encode(text)
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"].contents() is False


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_rotary_scaling_goes_out_and_in(tmp_path, byte_level, factor):
    scaling = RotaryScaling(factor=factor)
    long = config("llama", rotary_scaling=scaling, rotary_theta=500_000.0, context_length=20_000)
    own_run(tmp_path / "run", long, byte_level)
    list(export_gguf(tmp_path / "run", tmp_path / "m.gguf"))
    factors = GgufFile(tmp_path / "m.gguf").read("rope_freqs.weight")
    np.testing.assert_allclose(factors, rope_factors(scaling, 500_000.0, 16))
    assert factors[0] == 1 and factors.max() == pytest.approx(factor)
    again = loaded(import_model(tmp_path / "m.gguf", tmp_path / "again"))
    assert again.definition.config.rotary_scaling == scaling


def test_what_gguf_has_no_form_for_is_refused(tmp_path, byte_level, tokenizer):
    own_run(tmp_path / "post", DecoderConfig(**vars(CONFIGS["gpt2"]) | {"norm_place": "post"}), byte_level)
    with pytest.raises(ConfigError, match="is a gpt1: GGUF has gpt2 and llama"):
        list(export_gguf(tmp_path / "post", tmp_path / "m.gguf"))
    own_run(tmp_path / "reward", CONFIGS["gpt2"], byte_level, "scalar")
    with pytest.raises(ConfigError, match="holds a scalar model"):
        list(export_gguf(tmp_path / "reward", tmp_path / "m.gguf"))
    (tmp_path / "mine.gguf").write_text("mine")
    with pytest.raises(ConfigError, match="exists: name another"):
        list(export_gguf(tmp_path / "post", tmp_path / "mine.gguf"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.gguf", "post", "reward"]


def test_the_command_line_writes_a_file(tmp_path, byte_level, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own_run(tmp_path / "run", CONFIGS["llama"], byte_level)
    words = ["export", "run", "--output", "m.gguf", "--precision", "q8_0"]
    assert cli.main([*words, "--to", "gguf"]) == 0
    said = capsys.readouterr().out
    assert "with rows that 32 does not divide are F16: token_embd.weight, " in said
    assert "(llama, 14,160 parameters, q8_0) into m.gguf" in said
    assert cli.main([*words, "--to", "hf"]) == 2
    assert "--precision belongs to --to gguf" in capsys.readouterr().err
    assert import_model("m.gguf", "again").exists()


def test_a_published_sentencepiece_model_comes_back(tmp_path, tokenizer):
    lists = [[f"p{n}" for n in range(4)], [0.0, 0.0, -1.0, -2.0], [2, 3, 1, 1]]
    from gptjax.data.sentencepieces import from_lists

    foreign = from_lists(*lists, prefix=True, end_of_text=1)
    own_run(tmp_path / "run", CONFIGS["llama"], foreign)
    list(export_gguf(tmp_path / "run", tmp_path / "m.gguf"))
    again = loaded(import_model(tmp_path / "m.gguf", tmp_path / "again")).tokenizer
    assert isinstance(again, SentencePieceTokenizer) and again.prefix and again.end_of_text_id == 1
