"""RLOO and GRPO: groups of replies, their advantages, the update, checked answers."""

import dataclasses
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
from ppo_case import OPTIMIZER, drawn, make_case

from gptjax.config import to_json
from gptjax.data.chat import render_prompt
from gptjax.data.quality import DataError
from gptjax.generation.sampling import SamplingConfig
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.sharding.mesh import MeshConfig, make_mesh, place
from gptjax.stages.experience import make_score
from gptjax.stages.grouped import (
    GroupedConfig,
    GroupedState,
    count_totals,
    make_experience,
    make_grouped_loss,
    make_iteration,
)
from gptjax.stages.handover import save_model
from gptjax.stages.reply_rewards import make_scorer, read_questions
from gptjax.stages.rollout import response_log_probs
from gptjax.stages.sharded import create_state
from gptjax.training.metrics import read_metrics
from gptjax.training.optimizers import OptimizerConfig, make_optimizer

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")

B, K = 8, 4
TOKENIZER = SimpleNamespace(im_end_id=1, pad_id=0)
SCORES = jnp.array([1.0, 0.0, 0.5, 2.0, -1.0, 0.25, 3.0, 0.0])


def config_of(**changes):
    given = {
        "sampling": PPO.sampling,
        "prompt_length": PPO.prompt_length,
        "iterations": 4,
        "batch_size": B,
        "group_size": K,
        "kl_coef": 0.3,
        "missing_eos_penalty": 0.75,
        "optimizer": OPTIMIZER,
    }
    return GroupedConfig(**given | changes)


@pytest.fixture(scope="module")
def case():
    return make_case()


@pytest.fixture(scope="module")
def rollout(case):
    return drawn(case)


@pytest.fixture(scope="module")
def scored(case, rollout):
    """Log-probabilities and entropies of the policy, log-probabilities of the reference."""
    score = make_score(config_of(), case.language)
    return *score(case.policy, rollout), score(case.reference, rollout)[0]


def numpy_advantages(estimator, scores, costs):
    found = []
    for score, cost in zip(scores.reshape(-1, K), costs.reshape(-1, K), strict=True):
        for i in range(K):
            own, others = (score - cost)[i], np.delete(score - cost, i)
            standardised = (score[i] - score.mean()) / (score.std(ddof=1) + 1e-4)
            found.append(
                {
                    "rloo": own - others.mean(),
                    "grpo": standardised - (cost[i] - cost.mean()),
                    "dr_grpo": own - (score - cost).mean(),
                }[estimator]
            )
    return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["rloo", "grpo", "dr_grpo"])
def test_the_first_update_follows_the_gradient_of_reinforce(estimator, case, rollout, scored):
    config = config_of(estimator=estimator)
    batch, metrics = make_experience(config)(rollout, SCORES, *scored)
    kl = np.asarray((scored[0] - scored[2]) * rollout.mask, np.float64).sum(1)
    scores = np.asarray(SCORES, np.float64) - 0.75 * ~np.asarray(rollout.ended)
    assert rollout.ended.any() and not rollout.ended.all() and np.abs(kl).max() > 0.01
    advantages = numpy_advantages(estimator, scores, 0.3 * kl)
    np.testing.assert_allclose(batch["advantages"], advantages, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["objective/kl"], kl.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["objective/scores"], scores.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["objective/rlhf_reward"], (scores - 0.3 * kl).mean(), rtol=1e-5)
    assert metrics["val/equal_groups"] == 0

    divide = rollout.mask.sum(1) if estimator == "grpo" else 1.0

    def reinforce(params):
        log_probs, _ = response_log_probs(case.language, params, rollout, PPO.sampling.temperature)
        return -(advantages * log_probs.sum(1) / divide).mean()

    loss = make_grouped_loss(config, case.language)
    totals = count_totals(batch)
    ours, found = jax.jit(jax.grad(loss, has_aux=True))(case.policy, batch, totals, jax.random.key(0))
    theirs = jax.jit(jax.grad(reinforce))(case.policy)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(theirs)) > 0.01
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), ours, theirs)
    np.testing.assert_allclose(found["val/ratio"], 1, rtol=1e-5)


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_the_ratio_may_be_that_of_a_whole_reply(estimator, rollout, scored, monkeypatch):
    given = "gptjax.stages.grouped.response_log_probs"
    monkeypatch.setattr(given, lambda language, log_probs, *_: (log_probs, None))
    config = config_of(estimator=estimator, ratio="reply")
    batch, _ = make_experience(config)(rollout, SCORES, *scored)
    mask = np.asarray(rollout.mask, np.float64)
    new = scored[0] + 0.3 * np.random.default_rng(0).normal(size=mask.shape).astype(np.float32) * mask
    change = (np.asarray(new, np.float64) - scored[0]).sum(1)
    ratio = np.exp(change / mask.sum(1) if estimator == "grpo" else change)
    advantages = np.asarray(batch["advantages"], np.float64)
    expected = np.maximum(-advantages * ratio, -advantages * ratio.clip(0.8, 1.2))
    assert (expected != -advantages * ratio).any() and (expected == -advantages * ratio).any()
    loss, metrics = make_grouped_loss(config, None)(new, batch, count_totals(batch), None)
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)
    by_token = make_grouped_loss(dataclasses.replace(config, ratio="token"), None)(
        new, batch, count_totals(batch), None
    )
    assert abs(by_token[0] - loss) > 1e-3
    assert metrics["val/ratio"] == by_token[1]["val/ratio"]
    share = np.mean(expected != -advantages * ratio)
    np.testing.assert_allclose(metrics["policy/clipfrac_avg"], share, rtol=1e-6)
    assert by_token[1]["policy/clipfrac_avg"] != metrics["policy/clipfrac_avg"]


def test_groups_whose_rewards_are_equal_teach_nothing_and_are_counted(rollout, scored):
    config = config_of(kl_coef=0.0, missing_eos_penalty=0.0, estimator="grpo")
    scores = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    batch, metrics = make_experience(config)(rollout, scores, *scored)
    assert metrics["val/equal_groups"] == 0.5
    assert not batch["advantages"][:4].any() and batch["advantages"][5] > 0 > batch["advantages"][4]


def test_what_divergence_costs_is_not_blown_up_where_all_replies_score_the_same(rollout, scored):
    """A thousandth of a unit a nat stays that small beside right and wrong."""
    config = config_of(kl_coef=1e-3, missing_eos_penalty=0.0, estimator="grpo")
    scores = jnp.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    batch, _ = make_experience(config)(rollout, scores, *scored)
    kl = np.asarray(((scored[0] - scored[2]) * rollout.mask).sum(1), np.float64)
    expected = -1e-3 * (kl[:4] - kl[:4].mean())
    np.testing.assert_allclose(batch["advantages"][:4], expected, rtol=1e-4, atol=1e-9)
    assert 0 < np.abs(expected).max() < 0.01 < 1 < batch["advantages"][5]


def iterate(case, config, score_replies, count):
    """Policy parameters and metrics after some iterations that all ask the same prompts."""
    mesh = make_mesh(config.mesh)
    optimizer = make_optimizer(config.optimizer, 100, case.language.axes)
    policy = create_state(case.language, optimizer, mesh, params=case.policy)
    reference = jax.tree.map(jnp.copy, policy.params)
    iteration = make_iteration(config, TOKENIZER, case.language, reference, score_replies, optimizer, mesh)
    G = config.batch_size // config.group_size
    prompts = {name: case.prompts[name][:G] for name in ("tokens", "mask")}
    prompts = place(prompts | {"number": np.arange(G, dtype=np.int32)}, mesh)
    state, rows = GroupedState(jnp.zeros((), jnp.int32), policy), []
    for _ in range(count):
        state, metrics = iteration(state, prompts, jax.random.key(3))
        rows.append(jax.device_get(metrics))
    return jax.device_get(state.policy.params), rows


def share_of_sevens(rollout, numbers):
    return ((rollout.response == 7) * rollout.mask).sum(1) / rollout.mask.sum(1)


@pytest.mark.slow
def test_an_iteration_does_not_depend_on_devices_or_micro_batches(case):
    whole, (row,) = iterate(case, config_of(), share_of_sevens, 1)
    assert row["objective/kl"] == 0 and row["self_check/kl_of_equal_models"] == 0
    moves = jax.tree.map(lambda a, b: np.abs(a - b).max(), whole, jax.device_get(case.policy))
    assert max(jax.tree.leaves(moves)) > 1e-4
    changes = {"accumulate": 2, "mesh": MeshConfig(data=2)}
    got, (other,) = iterate(case, config_of(**changes), share_of_sevens, 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=5e-6), got, whole)
    for name in ("loss/policy_avg", "policy/clipfrac_avg", "val/ratio", "objective/scores"):
        np.testing.assert_allclose(other[name], row[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_what_is_rewarded_becomes_likelier(case):
    learning = OptimizerConfig(learning_rate=3e-2, schedule="constant", weight_decay=0.0)
    changes = {"batch_size": 32, "group_size": 16, "kl_coef": 0.0, "missing_eos_penalty": 0.0}
    config = config_of(optimizer=learning, estimator="grpo", minibatches=2, epochs=2, **changes)
    _, rows = iterate(case, config, share_of_sevens, 8)
    scores = [float(row["objective/scores"]) for row in rows]
    assert scores[-1] > 0.5 > 0.2 > scores[0]


def test_answers_are_checked_where_the_reply_has_ended(tokenizer):
    texts = ["so\n#### 7", "#### 8", "#### 7", "#### 7.0"]
    ids = [[*tokenizer.encode(text), tokenizer.im_end_id] for text in texts]
    ids[2] = ids[2][:-1]
    response = np.zeros((4, 16), np.int32)
    mask = np.zeros((4, 16), np.float32)
    for row, said in enumerate(ids):
        response[row, : len(said)], mask[row, : len(said)] = said, 1
    ended = np.array([True, True, False, True])
    rollout = SimpleNamespace(response=response, mask=mask, ended=ended)
    questions = SimpleNamespace(replies=["#### 8", "#### 7"])
    scores = make_scorer(None, questions, tokenizer)(rollout, np.array([1, 1, 1, 1]))
    assert scores.tolist() == [1, 0, 0, 1] and scores.dtype == jnp.float32
    assert make_scorer(None, questions, tokenizer)(rollout, np.array([0, 0, 0, 0])).tolist() == [0, 1, 0, 0]


def write_sums(folder, broken=False):
    """Dialogues that ask for sums, each reply ending with its answer; one without an answer if `broken`."""
    rows = []
    for a in range(10):
        for b in range(10):
            asked = {"role": "user", "content": f"{a} + {b}?"}
            said = {"role": "assistant", "content": f"#### {a + b}"}
            rows.append({"messages": [asked, said]})
    if broken:
        rows[41]["messages"][1]["content"] = "#### four"
    folder.mkdir(exist_ok=True)
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder / "sums.jsonl"


def test_a_row_without_an_answer_is_named(tmp_path, tokenizer):
    config = SimpleNamespace(reward="answers", prompts=str(write_sums(tmp_path)), seed=0, prompt_length=32)
    questions = read_questions(config, "train", tokenizer)
    prompts = [json.loads(row)["messages"] for row in write_sums(tmp_path).read_text("utf-8").splitlines()]
    rendered = {tuple(render_prompt(m[:1], tokenizer)): m[1]["content"] for m in prompts}
    assert [rendered[tuple(ids)] for ids in questions.ids] == questions.replies
    config.prompts = str(write_sums(tmp_path, broken=True))
    with pytest.raises(DataError, match=r"sums.jsonl:42: the last reply does not end with an answer"):
        for split in ("train", "heldout"):
            read_questions(config, split, tokenizer)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"group_size": 1}, "group_size = 1: a reply needs another"),
        ({"group_size": 3}, "group_size = 3 does not divide batch_size = 8"),
        ({"minibatches": 5}, "minibatches = 5 does not divide"),
        ({"sampling": SamplingConfig(top_p=0.9)}, "top_k 0, top_p 1"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        config_of(**wrong)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path, tokenizer):
    from test_stages_resume import assert_same_run

    model = dataclasses.replace(tiny.MODEL, vocab_size=1024)
    params = jax.jit(ModelDefinition(LanguageModel, model).initialise)(jax.random.key(0))
    save_model(tmp_path / "base", "language", model, params, tokenizer)
    config = GroupedConfig(
        policy=str(tmp_path / "base"),
        reward="answers",
        prompts=str(write_sums(tmp_path / "data")),
        estimator="grpo",
        sampling=SamplingConfig(max_new_tokens=5),
        prompt_length=32,
        text_length=32,
        iterations=6,
        batch_size=8,
        minibatches=2,
        optimizer=tiny.ADAM,
        save_every=2,
        eval_prompts=4,
    )
    for name, deaths in (("whole", [None]), ("killed", [("saving", 2, SIGKILL), None])):
        for die in deaths:
            process = stage_driver.start(to_json(config), tmp_path / name, tmp_path / "cache", die)
            process.join()
            log = (tmp_path / f"{name}.log").read_text("utf-8")
            assert process.exitcode == (-SIGKILL if die else 0), log[-3000:]
    assert "resumed at step" in log
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    figures = json.loads((tmp_path / "whole" / "done.json").read_text("utf-8"))["heldout"]
    assert set(figures) == {"reference", "policy"} and set(figures["policy"]) == {"right", "ended"}
    assert "val/equal_groups" in read_metrics(tmp_path / "whole" / "metrics.jsonl")[0]
    assert len((tmp_path / "whole" / "samples.jsonl").read_text("utf-8").splitlines()) == 4
