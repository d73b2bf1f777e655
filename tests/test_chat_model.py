"""The model behind a chat: which one a run has, and what it streams."""

import dataclasses
import io
import json
import sys

import jax
import pytest

from gptjax import cli, environment
from gptjax.config import ConfigError
from gptjax.data.chat import render_prompt
from gptjax.data.chat_templates import ChatForm
from gptjax.generation.engine import TextEngine
from gptjax.generation.sampling import SamplingConfig
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel, ScalarModel
from gptjax.models.transformer import DecoderConfig
from gptjax.serving.chat_model import load_chat_model
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages.handover import load_model, save_model

CONTEXT = 64
QUESTION = [{"role": "user", "content": "What is a naïve ☃?"}]
SAMPLING = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def config(tokenizer):
    shape = {"vocab_size": tokenizer.vocab_size, "context_length": CONTEXT, "width": 16}
    return DecoderConfig(**shape, layers=1, heads=2, init_std=0.3)


def saved(module, config, tokenizer, folder):
    """Writes a model with random weights into a run folder."""
    params = jax.jit(ModelDefinition(module, config).initialise)(jax.random.key(0))
    kind = {LanguageModel: "language", ScalarModel: "scalar"}[module]
    save_model(folder, kind, config, params, tokenizer)


@pytest.fixture(scope="module")
def run(config, tokenizer, tmp_path_factory):
    """A road whose PPO left a model that differs in its context from that of fine-tuning."""
    folder = tmp_path_factory.mktemp("run")
    saved(LanguageModel, config, tokenizer, folder / "ppo")
    saved(LanguageModel, dataclasses.replace(config, context_length=32), tokenizer, folder / "finetune")
    return folder


@pytest.fixture(scope="module")
def chat(run):
    return load_chat_model(run)


def said(model, messages=QUESTION, seed=0, **changes):
    return "".join(model.stream(messages, seed=seed, **(SAMPLING | changes)))


def test_the_pieces_of_a_stream_are_the_whole_reply(chat):
    for seed in range(3):
        whole = chat.replies([QUESTION], SamplingConfig(**SAMPLING), [seed])[0]
        assert said(chat, seed=seed) == whole != ""
    assert said(chat, seed=0) != said(chat, seed=1)


def test_a_road_answers_with_its_last_aligned_model(run, chat):
    assert chat.context_length == load_chat_model(run / "ppo").context_length == CONTEXT
    assert load_chat_model(run / "finetune").context_length == 32


def test_replies_do_not_depend_on_their_neighbours(chat):
    other = [{"role": "user", "content": "Say much more about the language reference, please."}]
    sampling = SamplingConfig(**SAMPLING)
    together = chat.replies([QUESTION, other], sampling, [5, 6])
    assert together == [chat.replies([QUESTION], sampling, [5])[0], chat.replies([other], sampling, [6])[0]]


def test_a_reply_ends_where_the_context_does(chat, tokenizer, monkeypatch):
    room = CONTEXT - len(render_prompt(QUESTION, tokenizer))
    assert chat.prompt_length(QUESTION) == CONTEXT - room

    def asked_for(self, prompt, sampling, seed):
        yield str(sampling.max_new_tokens)

    monkeypatch.setattr(TextEngine, "stream", asked_for)
    assert said(chat, max_new_tokens=500) == str(room)
    assert said(chat, max_new_tokens=3) == "3"


def test_a_dialogue_longer_than_the_context_is_refused_in_a_sentence(chat):
    too_long = [{"role": "user", "content": "word " * 200}]
    with pytest.raises(ConfigError, match=rf"the dialogue takes \d+ tokens, .* context length of {CONTEXT}"):
        said(chat, too_long)


def test_a_model_gets_the_system_message_it_expects_unless_there_is_another(config, tokenizer, tmp_path):
    params = jax.jit(ModelDefinition(LanguageModel, config).initialise)(jax.random.key(0))
    save_model(tmp_path, "language", config, params, tokenizer, ChatForm("Be terse."))
    chat, own = load_chat_model(tmp_path), [{"role": "system", "content": "Sing."}, *QUESTION]
    expected = render_prompt([{"role": "system", "content": "Be terse."}, *QUESTION], tokenizer)
    assert chat.prompt_length(QUESTION) == len(expected)
    assert chat.prompt_length(own) == len(render_prompt(own, tokenizer)) != len(expected)


def test_a_model_s_own_stops_end_its_replies(chat, config, tokenizer, tmp_path):
    reply = said(chat).encode()
    written = {id: tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)}
    first = [id for id, piece in written.items() if piece and reply.startswith(piece)]
    params = jax.jit(ModelDefinition(LanguageModel, config).initialise)(jax.random.key(0))
    save_model(tmp_path, "language", config, params, tokenizer, ChatForm(stop_ids=tuple(first)))
    assert 0 < len(first) < 9 and said(load_chat_model(tmp_path)) == ""


def test_a_model_is_asked_in_the_form_it_was_taught(config, tokenizer, tmp_path, monkeypatch):
    params = jax.jit(ModelDefinition(LanguageModel, config).initialise)(jax.random.key(0))
    save_model(tmp_path, "language", config, params, tokenizer, ChatForm(template="llama2"))
    monkeypatch.setattr(TextEngine, "stream", lambda _, prompt, *settings: iter([tokenizer.decode(prompt)]))
    assert said(load_chat_model(tmp_path)) == f"[INST] {QUESTION[0]['content']} [/INST]"


def test_a_model_s_own_sampling_is_the_chat_s_default(config, tokenizer, tmp_path, monkeypatch, capsys):
    params = jax.jit(ModelDefinition(LanguageModel, config).initialise)(jax.random.key(0))
    form = ChatForm(sampling={"temperature": 0.6, "top_k": 20})
    save_model(tmp_path, "language", config, params, tokenizer, form)
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(environment, "use_compilation_cache", lambda: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO("/set\n/quit\n"))
    assert cli.main(["chat", str(tmp_path), "--top-k", "5"]) == 0
    said = capsys.readouterr().out
    assert "temperature = 0.6\ntop_k = 5\ntop_p = 0.95\n" in said


def test_a_run_from_before_there_were_forms_of_dialogue_is_read(config, tokenizer, tmp_path):
    saved(LanguageModel, config, tokenizer, tmp_path)
    facts = json.loads((tmp_path / "model" / "model.json").read_text())
    del facts["chat"]
    (tmp_path / "model" / "model.json").write_text(json.dumps(facts | {"system_message": "Be terse."}))
    assert load_model(tmp_path, make_mesh(MeshConfig())).chat == ChatForm("Be terse.")


def test_a_run_without_a_chat_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no finished chat model yet"):
        load_chat_model(tmp_path)


def test_a_reward_model_is_no_chat_model(config, tokenizer, tmp_path):
    saved(ScalarModel, config, tokenizer, tmp_path)
    with pytest.raises(ConfigError, match="holds a scalar model, which does not chat"):
        load_chat_model(tmp_path)
