"""Prompts of any length meet few programs: the width of a batch, what it changes, what is compiled."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from ppo_case import CONFIG

from gptjax.data.chat import render_prompt
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.stages.experience import make_score
from gptjax.stages.ppo_data import prompt_rows, prompt_widths
from gptjax.stages.ppo_iteration import make_rollout

WORDS = [1, 1, 2, 40, 1, 3, 12, 2, 1, 25, 2, 1, 8, 1, 1, 30]
PROMPTS = [
    [{"role": "user", "content": " ".join(["word"] * count) + f" {i}"}] for i, count in enumerate(WORDS)
]


@pytest.mark.parametrize(
    ("length", "buckets", "widths"),
    [(48, 1, [48]), (48, 3, [12, 24, 48]), (50, 3, [13, 25, 50]), (2, 9, [1, 2])],
)
def test_widths_are_halves(length, buckets, widths):
    config = dataclasses.replace(CONFIG, prompt_length=length, prompt_buckets=buckets)
    assert prompt_widths(config) == widths


@pytest.fixture(scope="module")
def config(tokenizer):
    longest = max(len(render_prompt(messages, tokenizer)) for messages in PROMPTS)
    return dataclasses.replace(CONFIG, prompt_length=longest, prompt_buckets=2, batch_size=2)


@pytest.fixture(scope="module")
def batches(config, tokenizer):
    """Eight batches in buckets, and the same ones all of one width."""
    kinds = (config, dataclasses.replace(config, prompt_buckets=1))
    rows = [prompt_rows(PROMPTS, tokenizer, kind) for kind in kinds]
    return [[batch_at(number) for number in range(8)] for batch_at in rows]


def test_a_batch_is_as_wide_as_its_longest_prompt_needs(config, batches):
    widths, met = prompt_widths(config), set()
    for narrow, wide in zip(*batches, strict=True):
        width, longest = narrow["mask"].shape[1], narrow["mask"].sum(1).max()
        assert width == min(w for w in widths if w >= longest)
        assert wide["mask"].shape[1] == config.prompt_length and not wide["mask"][:, :-width].any()
        for name in ("tokens", "mask"):
            np.testing.assert_array_equal(narrow[name], wide[name][:, -width:])
        met.add(width)
    assert met == set(widths)


def test_programs_are_compiled_once_a_width_and_say_the_same(config, batches, tokenizer):
    model = dataclasses.replace(tiny.MODEL, vocab_size=tokenizer.vocab_size, init_std=0.3)
    language = ModelDefinition(LanguageModel, model)
    params = jax.jit(language.initialise)(jax.random.key(0))

    def request_keys(key, number):
        return jax.random.split(jax.random.fold_in(key, number), config.batch_size)

    said, counts = [], []
    for batch in batches:
        rollout = make_rollout(config, language, tokenizer, request_keys)
        score, replies = make_score(config, language), []
        for number, prompts in enumerate(batch):
            drawn = rollout(params, prompts, jax.random.key(1), number)
            replies.append(jax.device_get((drawn.response, drawn.mask, score(params, drawn)[0])))
        said.append(replies)
        counts.append((rollout._cache_size(), score._cache_size()))
    assert counts == [(2, 2), (1, 1)]
    for (narrow, mask, log_probs), (wide, wide_mask, wide_log_probs) in zip(*said, strict=True):
        np.testing.assert_array_equal(narrow, wide)
        np.testing.assert_array_equal(mask, wide_mask)
        # Sums over more or fewer masked keys round differently in the seventh digit.
        np.testing.assert_allclose(log_probs, wide_log_probs, atol=1e-5)
