"""Rejection sampling: what is drawn, what is kept, and that the whole stage survives its death."""

import json
from signal import SIGKILL
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stage_driver
import tiny
from ppo_case import CONFIG as PPO
from ppo_case import END, PAD, make_case

from gptjax.config import to_json
from gptjax.data.chat import located_dialogues
from gptjax.data.quality import DataError
from gptjax.generation.sampling import SamplingConfig
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel, ScalarModel
from gptjax.sharding.mesh import MeshConfig, make_mesh, place
from gptjax.stages.best_of_n import (
    BestOfNConfig,
    Drawn,
    frontier,
    make_drawing,
    nothing_drawn,
    write_best,
)
from gptjax.stages.finetune import FinetuneConfig
from gptjax.stages.handover import save_model
from gptjax.stages.many_replies import choose_prompts
from gptjax.stages.ppo_evaluation import DIVERGENCES
from gptjax.stages.rollout import draw, reward_scores
from gptjax.training.metrics import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")

TRAINING = FinetuneConfig(dialogues={"best": 1.0}, length=96, batch_size=2, steps=2, optimizer=tiny.ADAM)


def config_of(**changes):
    given = {
        "sampling": PPO.sampling,
        "prompt_length": PPO.prompt_length,
        "n": 3,
        "asked": 8,
        "batch_size": 4,
        "missing_eos_penalty": 0.5,
        "finetune": TRAINING,
    }
    return BestOfNConfig(**given | changes)


@pytest.mark.slow
def test_a_step_keeps_the_best_of_its_own_replies():
    case, config, key, n = make_case(), config_of(), jax.random.key(5), 3
    tokenizer = SimpleNamespace(im_end_id=END, pad_id=PAD)
    base = SimpleNamespace(definition=case.language, params=case.policy, tokenizer=tokenizer)
    reward = SimpleNamespace(definition=case.scalar, params=case.reward)
    mesh = make_mesh(MeshConfig())
    step, state = make_drawing(config, base, reward, mesh), nothing_drawn(config, mesh)
    for number in range(2):
        rows = slice(4 * number, 4 * number + 4)
        state, metrics = step(state, place({k: v[rows] for k, v in case.prompts.items()}, mesh), key)
    assert state.step == 2

    # The second step once more, one reply at a time from its own key.
    keys = jax.random.split(jax.random.fold_in(key, 1), 4 * n)
    one = jax.jit(lambda t, m, k: draw(case.language, case.policy, t, m, k, config.sampling, END, PAD))
    judge = jax.jit(lambda rollout: reward_scores(case.scalar, case.reward, rollout))
    scores, said, lengths = np.zeros((4, n)), [], []
    for row in range(4):
        replies = []
        for k in range(n):
            given = (case.prompts[name][4 + row][None] for name in ("tokens", "mask"))
            rollout = one(*given, keys[row * n + k][None])
            scores[row, k] = float(judge(rollout)[0]) - (0.0 if rollout.ended[0] else 0.5)
            replies.append(rollout)
        best = replies[int(scores[row].argmax())]
        said.append(best.response[0])
        lengths.append(int(best.mask.sum()) - 1 if best.ended[0] else -1)
    np.testing.assert_allclose(state.scores[4:], scores, atol=1e-5)
    np.testing.assert_array_equal(state.tokens[4:], said)
    np.testing.assert_array_equal(state.lengths[4:], lengths)
    np.testing.assert_allclose(metrics["best_of_n/best"], scores.max(1).mean(), atol=1e-5)
    np.testing.assert_allclose(metrics["best_of_n/mean"], scores.mean(), atol=1e-5)
    assert len({tuple(np.asarray(row)) for row in state.scores}) == 8  # no two requests share a key


def test_replies_without_an_end_or_text_are_left_out_and_counted(tmp_path, tokenizer, capsys):
    texts = ["a good line", "cut off in the mid", "", "  ", "another"]
    tokens, lengths = np.zeros((5, 24), np.int32), np.zeros(5, np.int32)
    for row, text in enumerate(texts):
        ids = tokenizer.encode(text)
        tokens[row, : len(ids)], lengths[row] = ids, len(ids)
    lengths[1] = -1
    scores = np.arange(10.0).reshape(5, 2)
    drawn = Drawn(jnp.int32(1), tokens, lengths, scores)
    asked = [[{"role": "user", "content": f"ask {row}"}] for row in range(5)]
    assert write_best(drawn, asked, tokenizer, tmp_path / "best.jsonl") == 2
    assert "2 of 5 best replies kept" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "best.jsonl").read_text("utf-8").splitlines()]
    assert [(row["messages"][-1]["content"], row["score"]) for row in rows] == [
        ("a good line", 1.0),
        ("another", 9.0),
    ]
    read = [
        d
        for split in ("train", "heldout")
        for d, _ in located_dialogues(tmp_path / "best.jsonl", split=split)
    ]
    assert sorted(m[0]["content"] for m in read) == ["ask 0", "ask 4"]
    with pytest.raises(DataError, match="no best reply has an end: raise sampling.max_new_tokens"):
        write_best(Drawn(drawn.step, tokens, lengths * 0 - 1, scores), asked, tokenizer, tmp_path / "none")


def test_the_frontier_rises_from_the_mean_to_the_best():
    scores = np.random.default_rng(0).normal(size=(50, 6))
    points = frontier(scores)
    assert [point["n"] for point in points] == [1, 2, 4, 6]
    assert points[0] == {"n": 1, "kl": 0.0, "reward": pytest.approx(scores.mean())}
    assert points[-1]["reward"] == pytest.approx(scores.max(1).mean())
    assert points[1]["kl"] == pytest.approx(np.log(2) - 0.5)
    rewards = [point["reward"] for point in points]
    assert rewards == sorted(rewards)


def test_prompts_are_asked_again_only_when_all_have_been(tmp_path, tokenizer):
    rows = [
        [{"role": "user", "content": f"ask {n}"}, {"role": "assistant", "content": "x"}] for n in range(40)
    ]
    file = tmp_path / "my.jsonl"
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), "utf-8")
    config = config_of(prompts=str(file), asked=96, prompt_length=40)
    asked = [messages[0]["content"] for messages, _ in choose_prompts(config, tokenizer)]
    different = len(set(asked))
    assert len(asked) == 96 and 30 <= different <= 40
    assert len(set(asked[:different])) == different and sorted(asked[:different]) != asked[:different]
    with pytest.raises(DataError, match="prompts fits into prompt_length = 1"):
        choose_prompts(config_of(prompts=str(file), prompt_length=1), tokenizer)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"batch_size": 3}, "batch_size = 3 does not divide asked = 8"),
        ({"sampling": SamplingConfig(temperature=0.0)}, "a temperature above 0 in best of n"),
        ({"sampling": SamplingConfig(top_p=0.9), "n": 1}, "top_p 1"),
        (
            {"finetune": FinetuneConfig(dialogues={"ratings": 1.0}, length=8, batch_size=1, steps=1)},
            "must give 'best'",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        config_of(**wrong)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    pytest.importorskip("vaderSentiment", reason="vaderSentiment is not installed (gptjax[data])")
    from test_stages_resume import assert_same_run, other_tokenizer

    data, tokenizer = tiny.write_data(tmp_path / "data"), other_tokenizer()
    for kind, module, seed in (("language", LanguageModel, 0), ("scalar", ScalarModel, 1)):
        params = jax.jit(ModelDefinition(module, tiny.MODEL).initialise)(jax.random.key(seed))
        save_model(tmp_path / kind, kind, tiny.MODEL, params, tokenizer)
    config = config_of(
        policy=str(tmp_path / "language"),
        reward=str(tmp_path / "scalar"),
        prompts=str(data / "dialogues.jsonl"),
        prompt_length=64,
        sampling=SamplingConfig(max_new_tokens=8),
        asked=24,
        n=32,  # so that some reply of an untrained model ends
        missing_eos_penalty=9.0,
        text_length=32,
        save_every=2,
        eval_prompts=4,
    )
    for name, deaths in (
        ("whole", [None]),
        ("killed", [("saving", 2, SIGKILL), ("handover", 1, SIGKILL), None]),
    ):
        for die in deaths:
            process = stage_driver.start(to_json(config), tmp_path / name, tmp_path / "cache", die)
            process.join()
            log = (tmp_path / f"{name}.log").read_text("utf-8")
            assert process.exitcode == (-SIGKILL if die else 0), log[-3000:]
    assert "best of n: resumed at step" in log
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    best = [(tmp_path / name / "best.jsonl").read_bytes() for name in ("whole", "killed")]
    assert best[0] == best[1]
    done = json.loads((tmp_path / "whole" / "done.json").read_text("utf-8"))
    assert done["kept"] == len(best[0].splitlines())
    assert {"reference", "policy", *DIVERGENCES, "frontier"} == set(done["heldout"])
    assert read_metrics(tmp_path / "whole" / "metrics.jsonl")[-1]["step"] == 6
