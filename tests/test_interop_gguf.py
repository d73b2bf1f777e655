"""GGUF: what a file holds is what is read, rotary pairs included; damaged and hostile files are refused."""

import struct

import gguf_file
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.data.byte_level import byte_characters
from gptjax.data.quality import DataError
from gptjax.errors import UserError
from gptjax.interop.chat_template_texts import system_message
from gptjax.interop.gguf import GgufFile
from gptjax.interop.importing import import_model, open_foreign
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages.handover import load_model

pytest.importorskip("tokenizers", reason="tokenizers is not installed (gptjax[hub])")

WIDTH, LAYERS, HEADS, KV_HEADS, INNER, CONTEXT = 64, 2, 4, 2, 96, 16
PIECES = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_characters(), "ab"]
VOCAB = len(PIECES)
TEMPLATE = "{{ '<|im_start|>system\\nYou are terse<|im_end|>\\n' }}{% for m in messages %}...{% endfor %}"
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": PIECES,
    "tokenizer.ggml.token_type": [3] * 3 + [1] * (VOCAB - 3),
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.chat_template": TEMPLATE,
}
LLAMA = {
    "general.architecture": "llama",
    "llama.context_length": CONTEXT,
    "llama.embedding_length": WIDTH,
    "llama.block_count": LAYERS,
    "llama.feed_forward_length": INNER,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 5000.0,
    **TOKENIZER,
}
GPT2 = {
    "general.architecture": "gpt2",
    "gpt2.context_length": CONTEXT,
    "gpt2.embedding_length": WIDTH,
    "gpt2.block_count": LAYERS,
    "gpt2.feed_forward_length": INNER,
    "gpt2.attention.head_count": HEADS,
    "gpt2.attention.layer_norm_epsilon": 1e-5,
    **TOKENIZER,
}


def drawn(seed, *shape):
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)


def llama_tensors():
    shapes = {"token_embd.weight": (VOCAB, WIDTH), "output_norm.weight": (WIDTH,)}
    kv = WIDTH // HEADS * KV_HEADS
    for i in range(LAYERS):
        block = {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "attn_q": (WIDTH, WIDTH), "attn_k": (kv, WIDTH)}
        block |= {"attn_v": (kv, WIDTH), "attn_output": (WIDTH, WIDTH), "ffn_gate": (INNER, WIDTH)}
        block |= {"ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER)}
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in block.items()}
    return {name: drawn(n, *shape) for n, (name, shape) in enumerate(shapes.items())}


def gpt2_tensors():
    shapes = {"token_embd.weight": (VOCAB, WIDTH), "position_embd.weight": (CONTEXT, WIDTH)}
    shapes |= {"output_norm.weight": (WIDTH,), "output_norm.bias": (WIDTH,)}
    maps = {"attn_qkv": (3 * WIDTH, WIDTH), "attn_output": (WIDTH, WIDTH)}
    maps |= {"ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER)}
    for i in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            shapes |= {f"blk.{i}.{norm}.weight": (WIDTH,), f"blk.{i}.{norm}.bias": (WIDTH,)}
        for name, shape in maps.items():
            shapes |= {f"blk.{i}.{name}.weight": shape, f"blk.{i}.{name}.bias": shape[:1]}
    return {name: drawn(n, *shape) for n, (name, shape) in enumerate(shapes.items())}


def loaded(folder):
    return load_model(folder, make_mesh(MeshConfig()))


def logits(definition, params, tokens):
    return np.asarray(jax.jit(definition.apply)(params, jnp.asarray(tokens)))


TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, CONTEXT))


def test_llama_is_the_model_that_pairs_neighbouring_channels(tmp_path):
    """The numbers as they lie, in a model with the pairing "interleaved": the same logits."""
    tensors = llama_tensors()
    path = gguf_file.write(tmp_path / "m.gguf", LLAMA, tensors)
    run = loaded(import_model(path, tmp_path / "run"))
    config = run.definition.config
    assert (config.layers, config.key_heads, config.rotary_theta) == (LAYERS, KV_HEADS, 5000.0)
    assert config.norm_epsilon == 1e-5 and config.tied and config.rotary_pairing == "half"

    def stacked(name):
        return np.stack([tensors[f"blk.{i}.{name}.weight"].T for i in range(LAYERS)])

    kernels = {"query": "attn_q", "key": "attn_k", "value": "attn_v", "output": "attn_output"}
    as_it_lies = {
        "embedding": tensors["token_embd.weight"],
        "norm": {"scale": tensors["output_norm.weight"]},
        "blocks": {
            "attention_norm": {"scale": stacked("attn_norm")},
            "mlp_norm": {"scale": stacked("ffn_norm")},
            "attention": {ours: {"kernel": stacked(theirs)} for ours, theirs in kernels.items()},
            "mlp": {name: {"kernel": stacked(f"ffn_{name}")} for name in ("gate", "up", "down")},
        },
    }
    interleaved = ModelDefinition(
        LanguageModel, config.__class__(**vars(config) | {"rotary_pairing": "interleaved"})
    )
    expected = logits(interleaved, {"decoder": as_it_lies}, TOKENS)
    np.testing.assert_allclose(logits(run.definition, run.params, TOKENS), expected, rtol=0, atol=1e-4)
    wrong = logits(run.definition, {"decoder": as_it_lies}, TOKENS)
    assert np.abs(wrong - expected).max() > 0.1


def test_gpt2_takes_query_key_and_value_apart(tmp_path):
    tensors = gpt2_tensors() | {"output.weight": drawn(99, VOCAB, WIDTH)}
    run = loaded(import_model(gguf_file.write(tmp_path / "m.gguf", GPT2, tensors), tmp_path / "run"))
    attention = run.params["decoder"]["blocks"]["attention"]
    for n, name in enumerate(("query", "key", "value")):
        part = slice(n * WIDTH, (n + 1) * WIDTH)
        np.testing.assert_array_equal(attention[name]["kernel"][1], tensors["blk.1.attn_qkv.weight"][part].T)
        np.testing.assert_array_equal(attention[name]["bias"][0], tensors["blk.0.attn_qkv.bias"][part])
    np.testing.assert_array_equal(run.params["decoder"]["positions"], tensors["position_embd.weight"])
    np.testing.assert_array_equal(run.params["unembedding"], tensors["output.weight"].T)
    assert run.definition.config.activation == "gelu" and not run.definition.config.tied


def test_the_run_has_its_tokenizer_and_its_system_message(tmp_path):
    run = loaded(import_model(gguf_file.write(tmp_path / "m.gguf", LLAMA, llama_tensors()), tmp_path / "run"))
    assert run.tokenizer.encode("ab") == [VOCAB - 1] and run.tokenizer.im_end_id == 2
    assert run.chat.system_message == "You are terse" and run.chat.template == "chatml"
    assert system_message("{% anything %}") == ""


def test_a_finished_import_is_not_done_again(tmp_path):
    path = gguf_file.write(tmp_path / "m.gguf", LLAMA, llama_tensors())
    import_model(path, tmp_path / "run")
    before = (tmp_path / "run" / "done.json").stat().st_mtime_ns
    import_model(path, tmp_path / "run")
    assert (tmp_path / "run" / "done.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="another configuration"):
        import_model(gguf_file.write(tmp_path / "n.gguf", LLAMA, llama_tensors()), tmp_path / "run")


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("F32", 0),
        ("F16", 1e-3),
        ("BF16", 8e-3),
        ("Q8_0", 8e-3),
        ("Q4_0", 0.2),
        ("Q4_1", 0.2),
    ],
)
def test_every_kind_of_tensor(tmp_path, kind, error):
    if kind.startswith("Q"):
        pytest.importorskip("gguf", reason="gguf is not installed (gptjax[hub])")
    array = drawn(3, 70_000, 64)  # of several parts
    path = gguf_file.write(tmp_path / "m.gguf", {}, {"a": drawn(1, 32), "x": array}, {"x": kind})
    read = GgufFile(path).read("x")
    assert read.dtype == np.float32 and read.shape == array.shape
    np.testing.assert_allclose(read, array, rtol=0, atol=error)


def test_a_block_of_q4_1_by_hand(tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed (gptjax[hub])")
    block = struct.pack("<ee", 0.5, -2.0) + bytes(n | (15 - n) << 4 for n in range(16))
    path = gguf_file.write(tmp_path / "m.gguf", {}, {"x": np.zeros((1, 32))}, {"x": "Q4_1"})
    path.write_bytes(path.read_bytes()[:-32] + block + bytes(12))
    low = 0.5 * np.arange(16) - 2.0
    np.testing.assert_array_equal(GgufFile(path).read("x"), [np.concatenate([low, low[::-1]])])


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_are_what_the_package_says(tmp_path, kind):
    package = pytest.importorskip("gguf", reason="gguf is not installed (gptjax[hub])")
    code = package.GGMLQuantizationType[kind]
    size = package.GGML_QUANT_SIZES[code][1]
    blocks = np.random.default_rng(0).integers(0, 60, (5, 3 * size)).astype(np.uint8)
    path = gguf_file.write(tmp_path / "m.gguf", {}, {"x": np.zeros((5, 768))}, {"x": int(code)})
    content = path.read_bytes()
    path.write_bytes(content[:-64] + blocks.tobytes())
    np.testing.assert_array_equal(GgufFile(path).read("x"), package.dequantize(blocks, code))


def sentencepiece(**changes):
    """Metadata with the lists of a SentencePiece model: special pieces, bytes, and the space."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    lists = {"tokens": pieces, "scores": [0] * VOCAB, "token_type": [2, 3, 3] + [6] * 256 + [1]}
    lists |= {"model": "llama", "eos_token_id": 2} | changes
    return LLAMA | {f"tokenizer.ggml.{name}": value for name, value in lists.items()}


def test_a_sentencepiece_model_of_the_metadata(tmp_path):
    path = gguf_file.write(tmp_path / "m.gguf", sentencepiece(), llama_tensors())
    tokenizer = loaded(import_model(path, tmp_path / "run")).tokenizer
    assert tokenizer.encode("é </s>") == [259, 3 + 0xC3, 3 + 0xA9, 259, *(3 + b for b in b"</s>")]
    assert tokenizer.decode(tokenizer.encode("é 漢")) == "é 漢" and tokenizer.end_of_text_id == 2


def test_the_piece_before_a_text_is_that_of_the_metadata(tmp_path):
    def begins(metadata):
        path = gguf_file.write(tmp_path / "m.gguf", metadata, llama_tensors())
        return open_foreign(path).tokenizer.bos_id

    assert begins(sentencepiece(bos_token_id=1)) == 1
    assert begins(sentencepiece(bos_token_id=1, add_bos_token=False)) is None
    special = {"tokenizer.ggml.bos_token_id": 1}
    assert begins(LLAMA | special) is None
    assert begins(LLAMA | special | {"tokenizer.ggml.add_bos_token": True}) == 1
    assert begins(LLAMA | special | {"tokenizer.ggml.pre": "llama-bpe"}) == 1


def test_what_ends_a_reply_is_read(tmp_path):
    ids = {f"tokenizer.ggml.{name}_token_id": id for name, id in (("eos", 2), ("eot", 0), ("eom", 2))}
    assert open_foreign(gguf_file.write(tmp_path / "m.gguf", LLAMA | ids, llama_tensors())).chat.stop_ids == (
        2,
        0,
    )
    for bad in (VOCAB, "</s>"):
        path = gguf_file.write(
            tmp_path / "m.gguf", LLAMA | {"tokenizer.ggml.eot_token_id": bad}, llama_tensors()
        )
        with pytest.raises(DataError, match="eot_token_id' is"):
            open_foreign(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"bos_token_id": 5},
        {"bos_token_id": "<s>"},
        {"bos_token_id": 1, "add_bos_token": "yes"},
        {"scores": [0] * 5},
        {"scores": "none"},
        {"token_type": [1] * VOCAB},
        {"token_type": [77] * VOCAB},
        {"token_type": "none"},
        {"tokens": ["<unk>"] * VOCAB},
        {"tokens": ["<unk>", "<s>", "</s>", *(f"<0xZ{n}>" for n in range(256)), "x"]},
        {"eos_token_id": 2**31},
        {"eos_token_id": "</s>"},
        {"add_space_prefix": "yes"},
    ],
)
def test_a_sentencepiece_model_that_cannot_be_is_refused(tmp_path, changes):
    path = gguf_file.write(tmp_path / "m.gguf", sentencepiece(**changes), llama_tensors())
    with pytest.raises(DataError, match=r"m\.gguf"):
        open_foreign(path)


@pytest.mark.parametrize("factors", [np.full(8, 2.0), np.full(8, np.nan), np.full(8, -1.0), np.ones(9)])
def test_other_rotary_factors_are_refused(tmp_path, factors):
    tensors = llama_tensors() | {"rope_freqs.weight": factors.astype(np.float32)}
    path = gguf_file.write(tmp_path / "m.gguf", LLAMA, tensors)
    with pytest.raises(DataError, match="rotary positions otherwise|not a factor for each of 8"):
        open_foreign(path)


def array_of(kind: int, count: int) -> bytes:
    return struct.pack("<IIQ", 9, kind, count)


HOSTILE = {
    "not GGUF": ({"magic": b"PK\x03\x04"}, "does not begin with GGUF"),
    "version 1": ({"version": 1}, "version 1"),
    "big-endian": ({"version": 3 << 24}, "version"),
    "keys without end": ({"key_count": 2**50}, "more than the rest can hold"),
    "tensors without end": ({"tensor_count": 2**50}, "more than the rest can hold"),
    "one tensor too many": ({"tensor_count": 30}, "GGUF|byte|dimensions|hold|twice"),
    "truncated": ({"cut": 100}, "copy it again"),
    "offset beyond the end": ({"offset": 2**62}, "ends at"),
}
HOSTILE_KEYS = {
    "array of 2^50 numbers": array_of(4, 2**50),
    "array of 2^50 strings": array_of(8, 2**50),
    "array of 2^64 - 1 bytes": array_of(0, 2**64 - 1),
    "array of arrays": array_of(9, 1),
    "string of 2^60 bytes": struct.pack("<IQ", 8, 2**60),
    "string that is not UTF-8": struct.pack("<I", 8) + gguf_file.string(b"\xff\xfe"),
    "unknown kind": struct.pack("<I", 77),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused(tmp_path, name):
    changes, sentence = HOSTILE[name]
    path = gguf_file.write(tmp_path / "m.gguf", LLAMA, llama_tensors(), **changes)
    with pytest.raises(DataError, match=sentence):
        GgufFile(path)


@pytest.mark.parametrize("name", HOSTILE_KEYS)
def test_hostile_values_are_refused(tmp_path, name):
    path = gguf_file.write(tmp_path / "m.gguf", LLAMA | {"evil": HOSTILE_KEYS[name]}, llama_tensors())
    with pytest.raises(DataError, match="m.gguf"):
        GgufFile(path)


def test_every_truncation_is_refused(tmp_path):
    whole = gguf_file.write(tmp_path / "m.gguf", LLAMA, llama_tensors()).read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 4000, 7), *range(4000, len(whole), 9973), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(DataError):
            GgufFile(cut)


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_give_a_model_or_a_sentence(tmp_path, seed):
    path = gguf_file.write(tmp_path / "m.gguf", LLAMA, llama_tensors())
    content, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for place in rng.integers(0, 9000, 6):
        content[place] = rng.integers(0, 256)
    path.write_bytes(content)
    try:
        open_foreign(path)
    except UserError as error:
        assert str(error)


@pytest.mark.parametrize("dims", [(), (1, 1, 1, 1, 1), (0, 64), (2**40, 2**40), (31,)])
def test_impossible_shapes_are_refused(tmp_path, dims):
    tensors = {"x": drawn(0, 2, 32)}
    path = gguf_file.write(tmp_path / "m.gguf", {}, tensors, {"x": "Q8_0"}, dims={"x": dims})
    with pytest.raises(DataError, match="'x'"):
        GgufFile(path)


def test_tensors_that_overlap_are_refused(tmp_path):
    """Else a small file could describe a huge model."""
    tensors = {"x": drawn(0, 8, 32), "y": drawn(0, 8, 32)}
    path = gguf_file.write(tmp_path / "m.gguf", {}, tensors)
    content = path.read_bytes()
    offset = struct.pack("<IQ", 0, 1024)
    assert content.count(offset) == 1
    path.write_bytes(content.replace(offset, struct.pack("<IQ", 0, 0)))
    with pytest.raises(DataError, match="lie over each other"):
        GgufFile(path)


@pytest.mark.parametrize("alignment", [0, 3, 2**31])
def test_an_odd_alignment_is_refused(tmp_path, alignment):
    path = gguf_file.write(tmp_path / "m.gguf", {"general.alignment": alignment}, {"x": drawn(0, 32)})
    with pytest.raises(DataError, match="alignment|ends at"):
        GgufFile(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba': llama and gpt2 can be imported"),
        ({"llama.block_count": 2**31}, "is 2147483648, not a count"),
        ({"llama.block_count": 10**6}, "too few for 1000000 layers"),
        ({"llama.block_count": "two"}, "block_count' is 'two', not a count"),
        ({"llama.embedding_length": 0}, "not a count"),
        ({"llama.attention.head_count": 5}, "does not divide"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "not a number"),
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type is 'yarn'"),
        ({"llama.expert_count": 8}, "expert_count is 8"),
        ({"llama.attention.key_length": 128}, "key_length is 128"),
        ({"llama.embedding_length": 128}, r"token_embd.weight \[260, 64\] instead of \[260, 128\]"),
        ({"tokenizer.ggml.model": "t5"}, "the tokenizer 't5'"),
        ({"tokenizer.ggml.model": "llama"}, "the scores"),
        ({"tokenizer.ggml.pre": "martian"}, "'martian'"),
        ({"tokenizer.ggml.tokens": "none"}, "lacks the pieces"),
    ],
)
def test_a_model_that_cannot_be_is_refused(tmp_path, change, sentence):
    path = gguf_file.write(tmp_path / "m.gguf", LLAMA | change, llama_tensors())
    with pytest.raises(DataError, match=sentence):
        import_model(path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_and_left_over_tensors_are_listed(tmp_path):
    tensors = llama_tensors()
    del tensors["blk.1.attn_q.weight"]
    tensors |= {"extra.weight": drawn(0, 8), "../../etc/passwd": drawn(0, 8)}
    path = gguf_file.write(tmp_path / "m.gguf", LLAMA, tensors)
    with pytest.raises(DataError) as caught:
        import_model(path, tmp_path / "run")
    assert "it lacks blk.1.attn_q.weight; unknown are ../../etc/passwd, extra.weight" in str(caught.value)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    tensors = llama_tensors()
    tensors["token_embd.weight"] = tensors["token_embd.weight"][:-1]
    path = gguf_file.write(tmp_path / "m.gguf", LLAMA, tensors)
    with pytest.raises(DataError, match="the tokenizer has 260 ids, the model only 259"):
        import_model(path, tmp_path / "run")
