"""Hugging Face folders: out and in again, sharded or not; damaged and hostile files are refused."""

import json
import re
import shutil
import struct

import jax
import numpy as np
import pytest

from gptjax import cli
from gptjax.config import ConfigError, to_json
from gptjax.data.chat_templates import PLAIN, ChatForm
from gptjax.data.quality import DataError
from gptjax.errors import UserError
from gptjax.interop.chat_template_texts import chat_template, system_message
from gptjax.interop.exporting import export_model, family_of
from gptjax.interop.importing import import_model, mesh_shardings, open_foreign
from gptjax.interop.names import read_parameters
from gptjax.interop.safetensors import SafetensorsFolder, read_header, write_safetensors
from gptjax.interop.tokenizer_files import read_tokenizer
from gptjax.models.families import gpt3, transformer
from gptjax.models.functional import ModelDefinition
from gptjax.models.transformer import DecoderConfig
from gptjax.runs import write_json_atomic
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages.handover import KINDS, load_model, parameter_digest, save_model

pytest.importorskip("tokenizers", reason="tokenizers is not installed (gptjax[hub])")

SHAPE = {"vocab_size": 320, "context_length": 32, "width": 16, "layers": 2, "heads": 4}
LLAMA = {"norm": "rmsnorm", "positions": "rotary", "activation": "swiglu", "bias": False, "mlp_width": 24}
CONFIGS = {"gpt2": DecoderConfig(**SHAPE), "llama": DecoderConfig(**SHAPE, **LLAMA, kv_heads=2, tied=False)}


def own_run(folder, config, tokenizer, kind="language", chat=PLAIN):
    """A run with random weights; its parameters."""
    rng, definition = np.random.default_rng(1), ModelDefinition(KINDS[kind], config)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), definition.abstract)
    folder.mkdir()
    write_json_atomic(folder / "config.json", to_json(config))
    save_model(folder, kind, config, params, tokenizer, chat)
    return params


@pytest.fixture(scope="module")
def exported(tmp_path_factory, byte_level):
    """Family -> an exported folder, not to be changed."""
    folder = tmp_path_factory.mktemp("exported")
    for family, config in CONFIGS.items():
        own_run(folder / f"run-{family}", config, byte_level)
        list(export_model(folder / f"run-{family}", folder / family))
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of the exported LLaMA, to damage."""
    shutil.copytree(exported / "llama", tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("family", CONFIGS)
def test_out_and_in_again_is_the_same_model(exported, tmp_path, family):
    run = import_model(exported / family, tmp_path / "run")
    before = load_model(exported / f"run-{family}", make_mesh(MeshConfig()))
    after = load_model(run, make_mesh(MeshConfig()))
    assert after.digest == before.digest == parameter_digest(after.params)
    assert after.tokenizer.hash == before.tokenizer.hash
    plain = {"kv_heads": after.definition.config.key_heads, "mlp_width": after.definition.config.inner_width}
    expected = vars(before.definition.config) | plain
    assert vars(after.definition.config) | plain == expected


def test_our_own_tokenizer_comes_back(tokenizer, tmp_path):
    own_run(tmp_path / "run", DecoderConfig(**SHAPE | {"vocab_size": 1024}), tokenizer)
    list(export_model(tmp_path / "run", tmp_path / "out"))
    assert read_tokenizer(tmp_path / "out").hash == tokenizer.hash


def test_the_system_message_goes_out_and_in(byte_level, tmp_path):
    own_run(tmp_path / "run", CONFIGS["llama"], byte_level, chat=ChatForm("Answer in rhymes"))
    list(export_model(tmp_path / "run", tmp_path / "out"))
    again = load_model(import_model(tmp_path / "out", tmp_path / "again"), make_mesh(MeshConfig()))
    assert again.chat.system_message == "Answer in rhymes"
    assert system_message(chat_template(ChatForm())) == ""


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}])
def test_every_tensor_goes_straight_into_its_parts(exported, monkeypatch, mesh):
    """On 8 devices each array lies as the rules say, and no device holds a whole tensor that they split."""
    before = load_model(exported / "run-llama", make_mesh(MeshConfig()))
    model, placed = open_foreign(exported / "llama"), []
    put, places = jax.device_put, mesh_shardings(model.definition, MeshConfig(**mesh))
    monkeypatch.setattr(jax, "device_put", lambda x, place: placed.append(put(x, place)) or placed[-1])
    found = read_parameters(model.tensors, model.wanted, model.definition, places)
    for leaf, place, whole in zip(*map(jax.tree.leaves, (found, places, before.params)), strict=True):
        assert leaf.sharding == place
        np.testing.assert_array_equal(leaf, whole)
    matrices = [array for array in placed if array.ndim == 2]
    assert len(matrices) == 2 + 7 * CONFIGS["llama"].layers
    for array in matrices:  # the parts that the devices got are of the tensor, and as small as they can be
        assert array.addressable_shards[0].data.size * MeshConfig(**mesh).size == array.size


def test_an_import_over_a_mesh_is_the_same_run(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = str(exported / "llama")
    assert cli.main(["import", source, "--mesh.fsdp", "8", "--name", "split"]) == 0
    split = load_model("runs/split", make_mesh(MeshConfig()))
    assert split.digest == load_model(exported / "run-llama", make_mesh(MeshConfig())).digest
    for words, sentence in (
        (["--mesh.fsdp", "0"], "1 or more"),
        (["--mesh.tensor", "3"], "does not divide over mesh.tensor = 3"),
        (["--mesh.fsdp", "16"], "needs 16 devices"),
    ):
        assert cli.main(["import", source, *words, "--name", "other"]) == 2
        assert sentence in capsys.readouterr().err


def write_generation(folder, **values):
    (folder / "generation_config.json").write_text(json.dumps(values))


def test_what_ends_a_reply_and_how_it_is_drawn_comes_in_and_goes_out(folder, tmp_path):
    write_generation(folder, eos_token_id=[7, 9], do_sample=True, temperature=0.6, top_p=0.9, top_k=None)
    run = import_model(folder, tmp_path / "run")
    form = load_model(run, make_mesh(MeshConfig())).chat
    assert form.stop_ids == (7, 9) and form.sampling == {"temperature": 0.6, "top_p": 0.9}
    list(export_model(run, tmp_path / "out"))
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["eos_token_id"] == [0, 2, 7, 9]  # the end of a text and <|im_end|> as well
    assert (written["do_sample"], written["temperature"], written["top_p"]) == (True, 0.6, 0.9)


@pytest.mark.parametrize(
    ("values", "stops", "sampling"),
    [
        ({"eos_token_id": 5}, (5,), {}),
        ({"eos_token_id": None, "top_k": 20}, (), {"top_k": 20}),
        ({"do_sample": False, "temperature": 1.0}, (), {}),
    ],
)
def test_what_a_folder_says_of_replies(folder, values, stops, sampling):
    write_generation(folder, **values)
    form = open_foreign(folder).chat
    assert (form.stop_ids, form.sampling) == (stops, sampling)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"eos_token_id": 320}, "eos_token_id has 320, but the model has the ids 0 to 319"),
        ({"eos_token_id": [0, -1]}, "eos_token_id has -1"),
        ({"eos_token_id": {"a": 1}}, "eos_token_id has {'a': 1}"),
        ({"eos_token_id": [True]}, "eos_token_id has True"),
        ({"eos_token_id": list(range(65))}, "eos_token_id lists 65 tokens, more than 64"),
        ({"temperature": 0}, "temperature is 0, out of its range"),
        ({"temperature": 1e400}, "temperature is inf"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"top_k": "all"}, "top_k is 'all'"),
    ],
)
def test_replies_that_cannot_be_are_refused(folder, values, sentence):
    write_generation(folder, **values)
    with pytest.raises(DataError, match=re.escape(sentence)):
        open_foreign(folder)


def shard(folder):
    """Splits model.safetensors in two, with an index."""
    source = SafetensorsFolder(folder)
    shapes, index = source.shapes(), {}
    for n, names in enumerate((sorted(shapes)[::2], sorted(shapes)[1::2]), 1):
        file = f"model-0000{n}-of-00002.safetensors"
        tensors = ((name, source.read(name)) for name in names)
        write_safetensors(folder / file, {name: shapes[name] for name in names}, tensors)
        index |= dict.fromkeys(names, file)
    (folder / "model.safetensors").unlink()
    write_index(folder, index)
    return index


def write_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_one_model(folder, exported):
    shard(folder)
    whole = SafetensorsFolder(exported / "llama")
    parts = SafetensorsFolder(folder)
    assert parts.shapes() == whole.shapes()
    for name in whole.shapes():
        np.testing.assert_array_equal(parts.read(name), whole.read(name))


@pytest.mark.parametrize(
    "name",
    ["../model/model-00001-of-00002.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "x.bin", 7, None],
)
def test_a_shard_is_a_plain_file_name(folder, name):
    index = shard(folder)
    write_index(folder, index | {"model.norm.weight": name})
    with pytest.raises(DataError, match="index.json names the file"):
        SafetensorsFolder(folder)


def test_an_index_that_promises_what_is_not_there_is_refused(folder):
    index = shard(folder)
    write_index(folder, index | {"ghost": "model-00001-of-00002.safetensors"})
    with pytest.raises(DataError, match="promises the tensor 'ghost'"):
        SafetensorsFolder(folder)
    write_index(folder, index | {"ghost": "gone.safetensors"})
    with pytest.raises(DataError, match="gone.safetensors cannot be read"):
        SafetensorsFolder(folder)
    write_index(folder, {})
    with pytest.raises(DataError, match="has no weight_map"):
        SafetensorsFolder(folder)


def test_a_tensor_in_two_shards_is_refused(folder):
    index = shard(folder)
    first, second = sorted(set(index.values()))
    shutil.copy(folder / first, folder / second)
    with pytest.raises(DataError, match="in two files"):
        SafetensorsFolder(folder)


def test_a_pickle_is_not_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="pytorch_model.bin is a pickle, which can run code"):
        SafetensorsFolder(folder)


@pytest.mark.parametrize(("kind", "tolerance"), [("F16", 2**-11), ("BF16", 2**-7), ("F64", 0)])
def test_other_precisions(tmp_path, kind, tolerance):
    array = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    coded = {
        "F16": array.astype("<f2"),
        "F64": array.astype("<f8"),
        "BF16": (array.view("<u4") >> 16).astype("<u2"),
    }[kind]
    raw_file(
        tmp_path, {"x": {"dtype": kind, "shape": [3, 5], "data_offsets": [0, coded.nbytes]}}, coded.tobytes()
    )
    read = SafetensorsFolder(tmp_path).read("x")
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, array, rtol=tolerance)


def raw_file(folder, header, body=b"\0" * 64, length=None):
    """A file with this header, an object or bytes."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(content) if length is None else length) + content + body)
    return path


def entry(first=0, last=64, shape=(16,), kind="F32"):
    return {"dtype": kind, "shape": list(shape), "data_offsets": [first, last]}


HOSTILE = {
    "empty": (b"", b"", 0),
    "header beyond the end": ({"x": entry()}, b"\0" * 64, 2**63),
    "header of 100 MB": (b"{}", b"", 2**40),
    "no JSON": (b"{'x': 1}", b"", None),
    "not an object": (b"[]", b"", None),
    "deep": (b"[" * 60_000, b"", None),
    "not UTF-8": (b'{"\xff": 1}', b"", None),
    "a name twice": (b'{"x": %s, "x": %s}' % ((json.dumps(entry()).encode(),) * 2), b"\0" * 64, None),
    "offsets beyond the end": ({"x": entry(last=128, shape=(32,))}, b"\0" * 64, None),
    "bytes left over": ({"x": entry()}, b"\0" * 65, None),
    "a hole": ({"x": entry(), "y": entry(68, 132)}, b"\0" * 132, None),
    "over each other": ({"x": entry(), "y": entry()}, b"\0" * 64, None),
    "backwards": ({"x": entry(64, 0)}, b"\0" * 64, None),
    "negative": ({"x": entry(-64, 0)}, b"\0" * 64, None),
    "negative shape": ({"x": entry(shape=(-4, -4))}, b"\0" * 64, None),
    "shape that overflows": ({"x": entry(shape=(2**61, 2**61))}, b"\0" * 64, None),
    "shape of text": ({"x": entry() | {"shape": "16"}}, b"\0" * 64, None),
    "unknown kind": ({"x": entry(kind="F31")}, b"\0" * 64, None),
    "kind that is a list": ({"x": entry() | {"dtype": [1]}}, b"\0" * 64, None),
    "no entry": ({"x": 7}, b"\0" * 64, None),
    "offsets of three": ({"x": entry() | {"data_offsets": [0, 32, 64]}}, b"\0" * 64, None),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_safetensors_are_refused(tmp_path, name):
    path = raw_file(tmp_path, *HOSTILE[name])
    with pytest.raises(DataError, match="model.safetensors"):
        read_header(path)


# Files that are read whole -> what must not be there for them to be read.
READ_WHOLE = {
    "config.json": [],
    "generation_config.json": [],
    "model.safetensors.index.json": ["model.safetensors"],
    "tokenizer_config.json": [],
    "chat_template.jinja": [],
    "tokenizer.json": [],
    "tokenizer.model": ["tokenizer.json"],
    "vocab.txt": ["tokenizer.json"],
    "vocab.json": ["tokenizer.json"],
    "merges.txt": ["tokenizer.json"],
}


@pytest.mark.parametrize("name", READ_WHOLE)
def test_a_file_without_end_is_not_read(folder, name):
    """A terabyte of holes takes no space on the disk; read whole, it would fill the memory."""
    (folder / "vocab.json").write_text('{"<|endoftext|>": 0}')
    (folder / "merges.txt").write_text("#version: 0.2\n")
    for other in READ_WHOLE[name]:
        (folder / other).unlink()
    with (folder / name).open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match=rf"{name} has 1099511627776 bytes, more than"):
        open_foreign(folder)


def test_every_truncation_is_refused(folder):
    whole = (folder / "model.safetensors").read_bytes()
    for length in [*range(0, 300, 3), *range(300, len(whole), 997), len(whole) - 1]:
        (folder / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(DataError):
            SafetensorsFolder(folder)


def test_a_tensor_of_whole_numbers_is_no_parameter(tmp_path):
    raw_file(tmp_path, {"x": entry(shape=(8,), kind="I64")})
    with pytest.raises(DataError, match="'x' is of kind I64"):
        SafetensorsFolder(tmp_path).read("x")


def change(folder, **values):
    """Replaces settings of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"model_type": "mamba"},
            "model_type 'mamba': gpt2, llama, mistral, openai-gpt, bert can be imported",
        ),
        ({"model_type": ["llama"]}, "model_type"),
        ({"architectures": ["LlamaModel"]}, "the architecture 'LlamaModel'"),
        ({"architectures": 3}, "the architecture"),
        ({"architectures": ["LlamaForSequenceClassification"], "num_labels": 5}, "classifier of 5 labels"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"head_dim": 128}, "head_dim is 128"),
        ({"num_hidden_layers": 10**9}, "is 1000000000, not a count"),
        ({"num_hidden_layers": 10**6}, "too few for 1000000 layers"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2', not a count"),
        ({"num_attention_heads": 3, "head_dim": None}, "cannot be"),
        ({"num_key_value_heads": 3}, "cannot be"),
        ({"rms_norm_eps": "small"}, "cannot be"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "cannot be"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 8.0}}, "scales rotary positions"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}}, "scales rotary"),
        ({"rope_parameters": "default"}, "scales rotary positions"),
        ({"sliding_window": "8"}, "sliding_window is '8', not a count"),
        ({"tie_word_embeddings": True}, "lm_head.weight differs from model.embed_tokens.weight"),
        (
            {"hidden_size": 32, "head_dim": None},
            r"model.embed_tokens.weight \[320, 16\] instead of \[320, 32\]",
        ),
        ({"num_hidden_layers": 1}, "unknown are model.layers.1.input_layernorm.weight, "),
        ({"num_hidden_layers": 3}, "it lacks model.layers.2.input_layernorm.weight, "),
        ({"vocab_size": 300}, "the tokenizer has 320 ids, the model only 300"),
    ],
)
def test_a_model_that_gptjax_does_not_have_is_refused(folder, tmp_path, values, sentence):
    change(folder, **values)
    with pytest.raises(DataError, match=sentence):
        import_model(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_copy_of_a_tied_embedding_is_left_out(exported, tmp_path):
    """Old GPT-2 folders have one, and buffers, and no prefix."""
    source, folder = SafetensorsFolder(exported / "gpt2"), tmp_path / "model"
    shutil.copytree(exported / "gpt2", folder)
    tensors = {name.removeprefix("transformer."): source.read(name) for name in source.shapes()}
    tensors |= {"lm_head.weight": tensors["wte.weight"], "h.0.attn.bias": np.ones((1, 1, 8, 8), np.float32)}
    tensors["h.1.attn.masked_bias"] = np.zeros((1,), np.float32)
    shapes = {name: array.shape for name, array in tensors.items()}
    write_safetensors(folder / "model.safetensors", shapes, tensors.items())
    again = load_model(import_model(folder, tmp_path / "run"), make_mesh(MeshConfig()))
    assert again.digest == load_model(exported / "run-gpt2", make_mesh(MeshConfig())).digest


@pytest.mark.parametrize(
    ("file", "sentence"), [("config.json", "config.json"), ("tokenizer.json", "no tokenizer.json")]
)
def test_a_missing_file_is_named(folder, file, sentence):
    (folder / file).unlink()
    with pytest.raises(DataError, match=sentence):
        open_foreign(folder)


@pytest.mark.parametrize("seed", range(100))
def test_odd_settings_give_a_model_or_a_sentence(folder, exported, tmp_path, seed):
    rng = np.random.default_rng(seed)
    if seed % 2:
        folder = tmp_path / "gpt2"
        shutil.copytree(exported / "gpt2", folder)
    names = list(json.loads((folder / "config.json").read_text()))
    odd = [None, -1, 0, 1, 10**30, 1.5, "x", "", [], [1], {}, {"a": {}}, True, False, 1e308, 2**24]
    for _ in range(3):
        change(folder, **{names[rng.integers(len(names))]: odd[rng.integers(len(odd))]})
    try:
        open_foreign(folder)
    except UserError as error:
        assert str(error)


def test_nothing_at_the_source_is_said_so(tmp_path):
    with pytest.raises(ConfigError, match="there is nothing at .*gone: name a GGUF file or a folder"):
        import_model(tmp_path / "gone", tmp_path / "run")


def test_what_transformers_has_no_class_for_is_refused(tmp_path, byte_level):
    own_run(tmp_path / "run", DecoderConfig(**SHAPE, activation="relu"), byte_level)
    with pytest.raises(ConfigError, match="it would be gpt2 but for activation = relu"):
        list(export_model(tmp_path / "run", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (transformer("base"), "neither a decoder nor BERT's encoder"),
        (gpt3("125M"), "it would be gpt2 but for attention_band = 256"),
    ],
)
def test_other_models_have_no_class(config, sentence):
    with pytest.raises(ConfigError, match=sentence):
        family_of(config, "runs/x")


def test_an_export_overwrites_nothing(exported, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not an empty folder"):
        list(export_model(exported / "run-gpt2", tmp_path))
    with pytest.raises(ConfigError, match="holds no finished model"):
        list(export_model(tmp_path, tmp_path / "out"))


def test_the_safetensors_package_reads_what_is_written(exported):
    package = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed (gptjax[parity])")
    ours = SafetensorsFolder(exported / "llama")
    theirs = package.load_file(exported / "llama" / "model.safetensors")
    assert {name: array.shape for name, array in theirs.items()} == ours.shapes()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours.read(name), array)


def test_a_folder_is_checked_before_its_numbers_are_read(folder, monkeypatch):
    monkeypatch.setattr(SafetensorsFolder, "read", lambda *_: pytest.fail("a tensor was read"))
    assert open_foreign(folder).definition.config.layers == 2
