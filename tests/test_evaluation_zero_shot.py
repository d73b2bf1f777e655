"""Zero-shot figures: scores against plain numpy, greedy answers against decoding, sources never seen."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny

from gptjax.config import ConfigError
from gptjax.data.in_context import Question, questions
from gptjax.evaluation.zero_shot import (
    ZeroShotConfig,
    completion_row,
    make_completion_scores,
    right_choices,
    right_greedily,
    run,
    score_rows,
    text_figures,
    trained_on,
    unseen_texts,
)
from gptjax.generation.decode import decode, left_pad, request_keys
from gptjax.generation.sampling import SamplingConfig
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.runs import read_done
from gptjax.stages.handover import TrainedModel, save_model

CONFIG = ZeroShotConfig(models=("a",), length=48, batch_size=8)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = replace(tiny.MODEL, vocab_size=tokenizer.vocab_size, init_std=0.3, context_length=64)
    definition = ModelDefinition(LanguageModel, config)
    return TrainedModel(definition, definition.initialise(jax.random.key(0)), tokenizer, "digest")


@pytest.fixture(scope="module")
def scores(model):
    return make_completion_scores(model.definition)


@pytest.mark.slow
def test_a_completion_is_scored_by_the_mean_of_its_tokens(model, scores):
    row = completion_row("the cat", " sat down", model.tokenizer, 48)
    before, after = model.tokenizer.encode("the cat"), model.tokenizer.encode(" sat down")
    assert row["loss_mask"].sum() == len(after)
    means, likeliest = score_rows(scores, model.params, [row] * 3, batch_size=2)
    ids = [model.tokenizer.end_of_text_id, *before, *after]
    logits = np.asarray(model.definition.apply(model.params, np.array([ids])))[0].astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    by_hand = np.mean([log_probs[len(before) + i, id] for i, id in enumerate(after)])
    np.testing.assert_allclose(means, by_hand, rtol=1e-5)
    assert (likeliest[0][: len(ids)] == logits.argmax(-1)).all()


def test_the_choice_of_the_highest_score_is_taken(model, scores):
    asked = questions("majority", 2, 6, seed=0)
    found = right_choices(model, scores, asked, CONFIG)
    for question, right in zip(asked, found, strict=True):
        rows = [completion_row(question.prompt, c, model.tokenizer, 48) for c in question.choices]
        means, _ = score_rows(scores, model.params, rows, 8)
        assert right == (question.choices[means.argmax()] == question.answer)


@pytest.mark.slow
def test_a_greedy_answer_is_what_decoding_writes(model, scores):
    prompts = ["once upon", "the king", "Q: What", "a"]
    ids = [[model.tokenizer.end_of_text_id, *model.tokenizer.encode(prompt)] for prompt in prompts]
    tokens, mask = left_pad(ids, model.tokenizer.pad_id, 16)
    sampling = SamplingConfig(max_new_tokens=4, temperature=0.0)
    state = decode(
        model.definition,
        model.params,
        tokens,
        mask,
        request_keys(range(4)),
        sampling=sampling,
        stop_sequences=(),
        pad_id=model.tokenizer.pad_id,
    )
    token_bytes = model.tokenizer.token_bytes
    for prompt, written in zip(prompts, np.asarray(state.tokens).tolist(), strict=True):
        # A tokenizer whose answer is the ids themselves, since random models write no text that encodes back.
        stand_in = SimpleNamespace(
            bos_id=None,
            end_of_text_id=model.tokenizer.end_of_text_id,
            pad_id=model.tokenizer.pad_id,
            token_bytes=token_bytes,
            encode=lambda text, written=written: (
                written[:3] if text == "answer" else [7] if text == "wrong" else model.tokenizer.encode(text)
            ),
        )
        own = TrainedModel(model.definition, model.params, stand_in, "digest")
        right = right_greedily(own, scores, [Question(prompt, "answer"), Question(prompt, "wrong")], CONFIG)
        assert right == [not token_bytes(written[3])[:1].isalnum(), False] or written[0] == 7


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(ConfigError, match="a question takes .* tokens, but length = 8: raise it"):
        completion_row("word " * 20, " x", model.tokenizer, 8)


def test_a_text_that_was_trained_on_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"corpora": {"pydoc": 1.0}}))
    with pytest.raises(ConfigError, match="was trained on pydoc: measure zero-shot on another text"):
        unseen_texts("pydoc", (str(tmp_path),), 100)
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    sources = {"base": str(tmp_path), "dialogues": {"sums": 1.0}, "text": {"shakespeare": 0.1}}
    (tuned / "config.json").write_text(json.dumps(sources))
    assert trained_on(tuned) == {"pydoc", "sums", "shakespeare"}
    with pytest.raises(ConfigError, match="tuned was trained on pydoc"):
        unseen_texts("pydoc", (str(tuned),), 100)


def test_a_ladder_is_measured_from_its_run_folders(model, tmp_path):
    for name in ("small", "large"):
        save_model(tmp_path / name, "language", model.definition.config, model.params, model.tokenizer)
    config = ZeroShotConfig(
        models=(str(tmp_path / "small"), str(tmp_path / "large")),
        text=("pydoc",),
        text_bytes=1000,
        task="majority",
        shots=(0, 2),
        questions=4,
        length=48,
        batch_size=8,
    )
    run(config, tmp_path / "measured")
    report = read_done(tmp_path / "measured")["models"]
    assert list(report) == list(config.models)
    for figures in report.values():
        assert figures["parameters"] == model.definition.parameter_count
        assert figures["text"]["pydoc"] == text_figures(model, unseen_texts("pydoc", (), 1000), config)
        bits = figures["text"]["pydoc"]["bits_per_byte"]
        assert figures["text"]["pydoc"]["byte_perplexity"] == pytest.approx(2**bits)
        assert set(figures["in_context"]) == {"0", "2"}
        assert figures["in_context"]["0"]["best"] == pytest.approx(0.1)
