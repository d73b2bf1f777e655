"""The model behind a chat: which one a run has, and what it streams."""

import jax
import pytest

from gptjax.config import ConfigError
from gptjax.data.chat import render_prompt
from gptjax.generation.sampling import SamplingConfig
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.models.transformer import DecoderConfig
from gptjax.serving.chat_model import load_chat_model
from gptjax.stages.handover import save_model

CONTEXT = 96
QUESTION = [{"role": "user", "content": "What is a naïve ☃?"}]
SAMPLING = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def definition(tokenizer):
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size, context_length=CONTEXT, width=16, layers=1, heads=2, init_std=0.3
    )
    return ModelDefinition(LanguageModel, config)


@pytest.fixture(scope="module")
def run(definition, tokenizer, tmp_path_factory):
    """A road whose fine-tuning and PPO left two different models."""
    folder = tmp_path_factory.mktemp("run")
    for seed, stage in enumerate(("finetune", "ppo")):
        params = jax.jit(definition.initialise)(jax.random.key(seed))
        save_model(folder / stage, "language", definition.config, params, tokenizer)
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
    greedy = {"temperature": 0.0}
    aligned, tuned = load_chat_model(run / "ppo"), load_chat_model(run / "finetune")
    assert said(chat, **greedy) == said(aligned, **greedy) != said(tuned, **greedy)


def test_replies_do_not_depend_on_their_neighbours(chat):
    other = [{"role": "user", "content": "Say much more about the language reference, please."}]
    sampling = SamplingConfig(**SAMPLING)
    together = chat.replies([QUESTION, other], sampling, [5, 6])
    assert together == [chat.replies([QUESTION], sampling, [5])[0], chat.replies([other], sampling, [6])[0]]


def test_a_reply_ends_where_the_context_does(chat, tokenizer):
    long = [{"role": "user", "content": "x" * 40}]
    room = CONTEXT - chat.prompt_length(long)
    assert chat.prompt_length(long) == len(render_prompt(long, tokenizer)) and 0 < room < 96
    reply = said(chat, long, max_new_tokens=500)
    assert 0 < len(tokenizer.encode(reply)) <= room + 3  # text may be spelt with other pieces


def test_a_dialogue_longer_than_the_context_is_refused_in_a_sentence(chat):
    too_long = [{"role": "user", "content": "word " * 200}]
    with pytest.raises(ConfigError, match=rf"the dialogue takes \d+ tokens, .* context length of {CONTEXT}"):
        said(chat, too_long)


def test_a_run_without_a_chat_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no finished chat model yet"):
        load_chat_model(tmp_path)


def test_a_reward_model_is_no_chat_model(definition, tokenizer, tmp_path):
    from gptjax.models.heads import ScalarModel

    scalar = ModelDefinition(ScalarModel, definition.config)
    params = jax.jit(scalar.initialise)(jax.random.key(0))
    save_model(tmp_path, "scalar", definition.config, params, tokenizer)
    with pytest.raises(ConfigError, match="holds no finished chat model"):
        load_chat_model(tmp_path)
