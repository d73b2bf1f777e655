"""Import from and export to transformers: the same logits, the same ids."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
from published_templates import PUBLISHED
from wordpiece_vocab import write_vocab

from gptjax.config import to_json
from gptjax.data.byte_level import ByteLevelTokenizer, byte_characters
from gptjax.data.chat_templates import PIECES, ChatForm, prompt_ids
from gptjax.data.corpora import read_documents
from gptjax.data.metaspace import MetaspaceTokenizer
from gptjax.data.wordpiece import WordPieceTokenizer
from gptjax.interop.chat_template_texts import chat_template, recognised
from gptjax.interop.exporting import export_model
from gptjax.interop.gguf_writing import export_gguf
from gptjax.interop.huggingface import read_template
from gptjax.interop.importing import import_model
from gptjax.interop.tokenizer_files import read_tokenizer, write_tokenizer
from gptjax.models.encoder import EncoderConfig
from gptjax.models.families import gpt1, gpt2, llama
from gptjax.models.functional import ModelDefinition
from gptjax.models.rotary import RotaryScaling
from gptjax.runs import write_json_atomic
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages.handover import KINDS, load_model, save_model

torch = pytest.importorskip("torch", reason="torch is not installed (pip install gptjax[parity])")
tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed (gptjax[hub])")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (gptjax[parity])")

TOKENS = np.random.default_rng(0).integers(0, 300, (2, 16))
# float32 sums in another order; logits are of the size of 1 to 10.
TOLERANCE = 1e-4


def theirs_gpt2():
    config = transformers.GPT2Config(
        vocab_size=320, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def theirs_gpt1():
    config = transformers.OpenAIGPTConfig(vocab_size=320, n_embd=32, n_layer=3, n_head=4, n_positions=64)
    return transformers.OpenAIGPTLMHeadModel(config)


def theirs_llama31():
    config = theirs_llama().config
    factors = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {"rope_type": "llama3", "rope_theta": 5000.0, "original_max_position_embeddings": 32}
    config.rope_parameters = factors | rope
    return transformers.LlamaForCausalLM(config)


def theirs_bert(kind):
    config = transformers.BertConfig(
        vocab_size=320,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    return kind(config)


def theirs_llama(tied=False):
    config = transformers.LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config)


def theirs_mistral():
    config = transformers.MistralConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        sliding_window=None,
    )
    return transformers.MistralForCausalLM(config)


def theirs_reward():
    config = theirs_llama().config
    config.num_labels, config.pad_token_id = 1, 0
    return transformers.LlamaForSequenceClassification(config)


def spread(model):
    """Weights large enough that the logits are no constants, norms that are not 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def outputs(folder, tokens=TOKENS):
    """What a run of ours computes."""
    model = load_model(folder, make_mesh(MeshConfig()))
    return jax.tree.map(np.asarray, jax.jit(model.definition.apply)(model.params, jnp.asarray(tokens)))


MAKERS = {
    "gpt1": theirs_gpt1,
    "gpt2": theirs_gpt2,
    "llama": theirs_llama,
    "llama, tied": lambda: theirs_llama(True),
    "llama 3.1": theirs_llama31,
    "mistral": theirs_mistral,
}


@pytest.mark.parametrize(("name", "shard"), [*((name, "1GB") for name in MAKERS), ("llama", "40KB")])
def test_import_gives_the_same_logits(tmp_path, byte_level, name, shard):
    theirs = spread(MAKERS[name]())
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    assert (tmp_path / "theirs" / "model.safetensors").exists() == (shard == "1GB")
    byte_level.save(tmp_path / "theirs" / "tokenizer.json")
    run = import_model(tmp_path / "theirs", tmp_path / "run")
    expected = theirs(torch.tensor(TOKENS)).logits.detach().numpy()
    np.testing.assert_allclose(outputs(run), expected, rtol=0, atol=TOLERANCE)


def test_a_sliding_window_is_a_shorter_context(tmp_path, byte_level, capsys):
    """Up to the window it hides nothing."""
    config = theirs_mistral().config
    config.sliding_window = 16
    theirs = spread(transformers.MistralForCausalLM(config))
    theirs.save_pretrained(tmp_path / "theirs")
    byte_level.save(tmp_path / "theirs" / "tokenizer.json")
    run = import_model(tmp_path / "theirs", tmp_path / "run")
    assert "the context is cut from 64 tokens to the sliding window of 16" in capsys.readouterr().out
    expected = theirs(torch.tensor(TOKENS)).logits.detach().numpy()
    np.testing.assert_allclose(outputs(run), expected, rtol=0, atol=TOLERANCE)
    with pytest.raises(ValueError, match="17 tokens exceed"):
        outputs(run, np.zeros((1, 17), np.int32))


@pytest.mark.parametrize("kind", ["BertForPreTraining", "BertForMaskedLM", "BertModel"])
def test_import_of_bert(tmp_path, kind):
    theirs, folder = spread(theirs_bert(getattr(transformers, kind))), tmp_path / "theirs"
    theirs.save_pretrained(folder)
    write_vocab(folder)
    run, out = import_model(folder, tmp_path / "run"), theirs(torch.tensor(TOKENS))
    ours = outputs(run)
    if kind == "BertModel":
        expected = [(ours, out.last_hidden_state)]
    elif kind == "BertForMaskedLM":
        expected = [(ours[0], out.logits)]
    else:
        expected = [(ours[0], out.prediction_logits), (ours[1], out.seq_relationship_logits)]
    for mine, true in expected:
        np.testing.assert_allclose(mine, true.detach().numpy(), rtol=0, atol=TOLERANCE)


def test_import_of_half_precision_gives_the_logits_of_those_weights(tmp_path, byte_level):
    theirs = spread(theirs_llama()).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs")
    byte_level.save(tmp_path / "theirs" / "tokenizer.json")
    run = import_model(tmp_path / "theirs", tmp_path / "run")
    # Read again, because in bfloat16 the wavelengths of its rotary positions have been rounded too.
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "theirs", dtype=torch.float32
    ).eval()
    expected = theirs(torch.tensor(TOKENS)).logits.detach().numpy()
    np.testing.assert_allclose(outputs(run), expected, rtol=0, atol=TOLERANCE)


def test_import_of_a_reward_model(tmp_path, byte_level):
    theirs = spread(theirs_reward())
    theirs.save_pretrained(tmp_path / "theirs")
    byte_level.save(tmp_path / "theirs" / "tokenizer.json")
    run = import_model(tmp_path / "theirs", tmp_path / "run")
    hidden = theirs.model(torch.tensor(TOKENS)).last_hidden_state
    expected = theirs.score(hidden).detach().numpy()[..., 0]
    np.testing.assert_allclose(outputs(run), expected, rtol=0, atol=TOLERANCE)


SHAPE = {"vocab_size": 1024, "context_length": 64, "width": 32, "layers": 3, "heads": 4}
OURS = {
    "gpt2": gpt2("124M", **SHAPE),
    "gpt2, untied": gpt2("124M", **SHAPE, tied=False, mlp_width=48),
    "llama": llama("7B", **SHAPE, kv_heads=2, mlp_width=48, rotary_theta=777.0),
    "llama, tied": llama("7B", **SHAPE, mlp_width=48, tied=True),
    "gpt1": gpt1("117M", **SHAPE),
    "llama 3.1": llama(
        "7B", **SHAPE, mlp_width=48, rotary_theta=777.0, rotary_scaling=RotaryScaling(original_context=32)
    ),
    "llama, interleaved": llama("7B", **SHAPE, kv_heads=2, mlp_width=48, rotary_pairing="interleaved"),
}


def own_run(folder, config, tokenizer, kind="language"):
    """A run with random weights."""
    rng, definition = np.random.default_rng(1), ModelDefinition(KINDS[kind], config)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), definition.abstract)
    folder.mkdir(exist_ok=True)
    write_json_atomic(folder / "config.json", to_json(config))
    save_model(folder, kind, config, params, tokenizer)
    return folder


@pytest.mark.parametrize("name", OURS)
def test_export_gives_the_same_logits_and_comes_back(tmp_path, tokenizer, name):
    run = own_run(tmp_path / "run", OURS[name], tokenizer)
    list(export_model(run, tmp_path / "hf"))
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = outputs(run)
    np.testing.assert_allclose(
        theirs.eval()(torch.tensor(TOKENS)).logits.detach(), ours, rtol=0, atol=TOLERANCE
    )
    again = import_model(tmp_path / "hf", tmp_path / "again")
    np.testing.assert_allclose(outputs(again), ours, rtol=0, atol=1e-5)
    assert load_model(again, make_mesh(MeshConfig())).tokenizer.hash == tokenizer.hash


@pytest.mark.parametrize("activation", ["gelu", "gelu_erf"])
def test_export_of_bert(tmp_path, activation):
    folder = tmp_path / "hf"
    wordpiece = WordPieceTokenizer.from_vocab(write_vocab(tmp_path))
    shape = SHAPE | {"vocab_size": 320, "mlp_width": 48, "activation": activation}
    run = own_run(tmp_path / "run", EncoderConfig(**shape), wordpiece, "masked")
    list(export_model(run, folder))
    theirs, info = transformers.BertForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    out = theirs.eval()(torch.tensor(TOKENS))
    expected = out.prediction_logits.detach(), out.seq_relationship_logits.detach()
    for mine, true in zip(outputs(run), expected, strict=True):
        np.testing.assert_allclose(mine, true, rtol=0, atol=TOLERANCE)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [wordpiece.cls_id, *wordpiece.encode("Unaffable banana"), wordpiece.sep_id]
    assert tokenizer("Unaffable banana")["input_ids"] == ids or tokenizer.encode(
        "Unaffable banana", add_special_tokens=False
    ) == wordpiece.encode("Unaffable banana")


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_gguf_file_gives_the_same_logits(tmp_path, byte_level, name):
    """Read by transformers, which turns rotary pairs by its own code; its GPT-2 has 1,024 positions."""
    pytest.importorskip("gguf", reason="gguf is not installed (gptjax[hub])")
    pytest.importorskip("accelerate", reason="accelerate is not installed (gptjax[parity])")
    config = dataclasses.replace(OURS[name], vocab_size=320, context_length=1024)
    run = own_run(tmp_path / "run", config, byte_level)
    list(export_gguf(run, tmp_path / "m.gguf"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf").eval()
    logits = theirs(torch.tensor(TOKENS)).logits.detach()
    np.testing.assert_allclose(logits, outputs(run), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_reward_model_is_a_classifier_of_one_label(tmp_path, tokenizer, name):
    run = own_run(tmp_path / "run", OURS[name], tokenizer, "scalar")
    said = list(export_model(run, tmp_path / "hf"))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    tokens = np.random.default_rng(2).integers(10, 1000, (2, 16))
    ours = outputs(run, tokens)[:, -1]
    if name == "llama":  # whose classifier has no bias
        bias = float(load_model(run, make_mesh(MeshConfig())).params["bias"][0])
        assert f"{bias:.6g}" in said[0]
        ours = ours - bias
    scores = theirs(torch.tensor(tokens)).logits.detach().numpy()
    assert scores.shape == (2, 1)
    np.testing.assert_allclose(scores[:, 0], ours, rtol=0, atol=TOLERANCE)


TEXTS = [
    "",
    " ",
    "  two  blanks ",
    "tabs\tand\r\n\n\nnewlines",
    "😀👩\u200d🚀 é 漢字",
    "def f(x):\n    return 12345",
    "\x00\x01",
]


def test_the_exported_tokenizer_gives_the_same_ids(tmp_path, tokenizer):
    run = own_run(tmp_path / "run", OURS["llama"], tokenizer)
    list(export_model(run, tmp_path / "hf"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    texts = TEXTS + [document.text for document in read_documents("pydoc", split="heldout")[:30]]
    texts += [document.text for document in read_documents("ratings", split="heldout")[:100]]
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ids == tokenizer.encode(text)
        assert theirs.decode(ids) == text
    assert theirs.eos_token_id == tokenizer.end_of_text_id and theirs.pad_token_id == tokenizer.pad_id


def test_the_exported_chat_template_writes_what_our_chat_writes(tmp_path, tokenizer):
    from gptjax.data.chat import render_prompt

    run = own_run(tmp_path / "run", OURS["llama"], tokenizer)
    list(export_model(run, tmp_path / "hf"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is a ☃?"},
        {"role": "assistant", "content": "Snow."},
        {"role": "user", "content": "Why?"},
    ]
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == render_prompt(messages, tokenizer)
    stops = json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"]
    assert set(stops) == {tokenizer.end_of_text_id, tokenizer.im_end_id}


def test_what_transformers_says_of_replies_comes_in_and_goes_back(tmp_path, byte_level):
    theirs, drawn = theirs_llama(), {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    theirs.generation_config = transformers.GenerationConfig(eos_token_id=[7, 9], **drawn)
    theirs.save_pretrained(tmp_path / "theirs")
    byte_level.save(tmp_path / "theirs" / "tokenizer.json")
    run = import_model(tmp_path / "theirs", tmp_path / "run")
    form = load_model(run, make_mesh(MeshConfig())).chat
    assert form.stop_ids == (7, 9) and form.sampling == {"temperature": 0.6, "top_p": 0.9}
    list(export_model(run, tmp_path / "hf"))
    again = transformers.GenerationConfig.from_pretrained(tmp_path / "hf")
    assert again.eos_token_id == [0, 2, 7, 9] and {name: getattr(again, name) for name in drawn} == drawn


# Without special pieces: typed, they are special in transformers.
DIALOGUES = [
    [{"role": "user", "content": " What is a ☃?\n"}],
    [
        {"role": "user", "content": "Define f."},
        {"role": "assistant", "content": " def f(x):\n    return 12  # 漢字"},
        {"role": "user", "content": "Why? [/INST]"},
    ],
]
SYSTEM = {"role": "system", "content": "Be brief, 😀. "}


def theirs_of(folder, form, **settings):
    """The tokenizer of transformers in a folder, which gets the settings, with the form's chat template."""
    config = folder / "tokenizer_config.json"
    stored = json.loads(config.read_text()) if config.exists() else {}
    config.write_text(json.dumps(stored | settings | {"chat_template": PUBLISHED[form]}))
    return transformers.AutoTokenizer.from_pretrained(folder)


def same_dialogues(theirs, ours, form, dialogues):
    for messages in dialogues:
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert prompt_ids(messages, ours, form) == expected


@pytest.mark.parametrize("form", ["llama2", "mistral", "mistral, spaced"])
def test_instructions_have_the_ids_of_transformers(tmp_path, form):
    train_llama_like(tmp_path / "model")
    legacy = form != "mistral, spaced"
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "add_bos_token": True}
    theirs = theirs_of(tmp_path / "model", form, **settings)
    ours = read_tokenizer(tmp_path / "model")
    assert recognised(read_template(tmp_path / "model"), ours) == form
    dialogues = DIALOGUES if form == "mistral" else [*DIALOGUES, *([SYSTEM, *d] for d in DIALOGUES)]
    same_dialogues(theirs, ours, form, dialogues)
    (tmp_path / "out").mkdir()
    write_tokenizer(tmp_path / "out", ours, 128, ChatForm(template=form))
    same_dialogues(transformers.AutoTokenizer.from_pretrained(tmp_path / "out"), ours, form, dialogues)
    assert theirs.encode("Hello world") == [ours.bos_id, *ours.encode("Hello world")]


@pytest.mark.parametrize("legacy", [True, False])
def test_chatml_of_sentencepieces_has_the_ids_of_transformers(tmp_path, legacy):
    """The space before a text stands after every special piece, or before the first text alone."""
    train_llama_like(tmp_path / "model")
    added = {"<|im_start|>": 600, "<|im_end|>": 601}
    (tmp_path / "model" / "added_tokens.json").write_text(json.dumps(added))
    template = chat_template(ChatForm())
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "add_bos_token": False}
    settings |= {"chat_template": template, "additional_special_tokens": list(added)}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    ours = read_tokenizer(tmp_path / "model")
    if not legacy:  # what says so is `tokenizer.json`
        (tmp_path / "alone").mkdir()
        theirs.backend_tokenizer.save(str(tmp_path / "alone" / "tokenizer.json"))
        ours = read_tokenizer(tmp_path / "alone")
        assert ours.prefix_once
    assert recognised(template, ours) == "chatml"
    same_dialogues(theirs, ours, "chatml", [*DIALOGUES, *([SYSTEM, *d] for d in DIALOGUES)])


@pytest.mark.parametrize("form", ["llama3", "llama3.1"])
def test_headers_have_the_ids_of_transformers(tmp_path, form):
    pieces = ["<|end_of_text|>", *byte_characters(), "Ġa", "ĊĊ", "<|begin_of_text|>", *PIECES[form]]
    kinds = [3, *[1] * 258, *[3] * 4]
    ours = ByteLevelTokenizer.from_pieces(pieces, kinds, ["Ġ a", "Ċ Ċ"], "llama-bpe", 259)
    (tmp_path / "model").mkdir()
    ours.save(tmp_path / "model" / "tokenizer.json")
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    theirs = theirs_of(tmp_path / "model", form, tokenizer_class="PreTrainedTokenizerFast", **names)
    assert recognised(read_template(tmp_path / "model"), ours) == form
    dialogues = [*DIALOGUES, *([SYSTEM, *d] for d in DIALOGUES)]
    same_dialogues(theirs, ours, form, dialogues)
    (tmp_path / "out").mkdir()
    write_tokenizer(tmp_path / "out", ours, 512, ChatForm(template=form))
    same_dialogues(transformers.AutoTokenizer.from_pretrained(tmp_path / "out"), ours, form, dialogues)
    assert theirs.encode("a b") == [ours.bos_id, *ours.encode("a b")]


def test_byte_level_ids_are_those_of_transformers(tmp_path, byte_level):
    byte_level.save(tmp_path / "tokenizer.json")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in TEXTS:
        assert theirs.encode(text, add_special_tokens=False) == byte_level.encode(text)


def train_llama_like(folder):
    """Leaves a SentencePiece model in a folder."""
    folder.mkdir(exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for d in read_documents("pydoc")[:40] for line in d.text.splitlines()),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )


def test_sentencepiece_ids_are_those_of_transformers(tmp_path):
    """A model as LLaMA's: single digits, bytes for unknown characters, a space before the text.

    Texts that begin with a space are left out: transformers puts none before them, SentencePiece does.
    """
    train_llama_like(tmp_path)
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), read_tokenizer(tmp_path)
    texts = [text for text in TEXTS if not text.startswith(" ")]
    for text in [*texts, "Hello 2024 world", "for i in range(10):\n\treturn"]:
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text), text


@pytest.mark.parametrize("style", ["Prepend", "Metaspace"])
def test_a_tokenizer_json_of_sentencepiece_alone_gives_the_same_ids(tmp_path, style):
    """As LLaMA's was published, and as transformers 5 saves it."""
    train_llama_like(tmp_path / "model")
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    if style == "Prepend":
        change, replace = tokenizers.normalizers, tokenizers.normalizers.Replace(" ", "▁")
        theirs.backend_tokenizer.normalizer = change.Sequence([change.Prepend("▁"), replace])
        theirs.backend_tokenizer.pre_tokenizer = None
    (tmp_path / "alone").mkdir()
    theirs.backend_tokenizer.save(str(tmp_path / "alone" / "tokenizer.json"))
    ours = read_tokenizer(tmp_path / "alone")
    assert isinstance(ours, MetaspaceTokenizer) and (ours.bos_id, ours.end_of_text_id) == (1, 2)
    texts = TEXTS + [document.text[:2000] for document in read_documents("pydoc", split="heldout")[:30]]
    for text in [*texts, "for i in range(10):\n\treturn", "微积分的基本定理，是什么？"]:
        ids = ours.encode(text)
        assert theirs.encode(text) == [1, *ids], text
        if not text.startswith(" "):
            assert ours.decode(ids) == text


def test_gpt1_ids_are_those_of_transformers(tmp_path):
    pieces = [
        "<unk>",
        *"abcdehlo'",
        *(f"{letter}</w>" for letter in "abcdehlo',"),
        "he",
        "ll",
        "hell",
        "hello</w>",
    ]
    merges = ["h e", "l l", "he ll", "hell o</w>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: id for id, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    theirs = transformers.OpenAIGPTTokenizer(
        vocab=json.loads((tmp_path / "vocab.json").read_text()), merges=[tuple(m.split()) for m in merges]
    )
    ours = read_tokenizer(tmp_path)
    for text in ("Hello, hello", "a  bad 'hell' é", "HELLOhello"):
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text), text
