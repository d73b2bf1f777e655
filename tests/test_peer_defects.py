"""Defects found in other implementations, each as a test of its name; docs/conventions.md lists them all."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conventions_case import CONFIG, DOT, DRAWN, END, Bigram, Unigram, make_models, rollout_until
from documentation import table

from gptjax.config import ConfigError
from gptjax.losses.masked import masked_whiten
from gptjax.sharding.mesh import MeshConfig, make_mesh, place
from gptjax.stages.experience import make_experience, make_score
from gptjax.stages.ppo import initial_critic
from gptjax.stages.rollout import cut_replies
from gptjax.stages.self_check import SelfCheckFailed, check_identities

MODELS = make_models()
POLICY, REFERENCE = {"w": MODELS["old"]}, {"w": MODELS["reference"]}
CRITIC, REWARD = {"u": MODELS["old_critic"]}, {"u": MODELS["reward"]}


@pytest.fixture(scope="module")
def score():
    return make_score(CONFIG, Bigram())


@pytest.fixture(scope="module")
def experience(score):
    return make_experience(CONFIG, score, Unigram())


def made_of(experience, rollout, policy=POLICY, reference=REFERENCE):
    """What the updates see, and the metrics, as numpy arrays."""
    found = jax.device_get(experience(policy, CRITIC, reference, REWARD, rollout, jnp.float32(0.3)))
    assert found[1]["objective/entropy"] > 0
    return found


def test_pad_equal_to_eos_and_sentinel_arithmetic(experience):
    """What fills the slots after a reply (padding, the end token, any token) is nowhere to be seen.

    Elsewhere a reply ends before the first padding id, so that padding with the end token loses the end, and
    a log-probability of 1 stands in the padding, where it drags the entropy below 0.
    """
    rollout = rollout_until(stops=True)
    inside = rollout.mask > 0
    wanted, metrics = made_of(experience, rollout)
    for filler in (END, DOT):
        filled = replace(rollout, response=jnp.where(inside, rollout.response, filler))
        found, found_metrics = made_of(experience, filled)
        for name in ("old_log_probs", "old_values", "rewards", "advantages", "returns"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
            assert not getattr(found, name)[~np.asarray(inside)].any()
        assert found_metrics == metrics


def test_score_on_every_token(experience):
    """With policy and reference equal, the rewards of a reply add up to its score and stand at its end."""
    rollout = rollout_until(stops=True)
    made, metrics = made_of(experience, rollout, reference=POLICY)
    last = np.asarray(rollout.mask).sum(1).astype(int) - 1
    rows = np.arange(len(last))
    tokens = np.asarray(rollout.response)[rows, last]
    penalty = np.where(rollout.ended, 0, CONFIG.missing_eos_penalty).astype(np.float32)
    expected = np.zeros_like(made.rewards)
    expected[rows, last] = MODELS["reward"][tokens] - penalty
    np.testing.assert_allclose(made.rewards, expected, rtol=1e-6)
    assert metrics["objective/kl"] == 0


def test_temperature_mismatch(experience, score):
    """One temperature for sampling, policy, reference and loss; a reference at another one costs KL."""
    rollout = rollout_until(stops=True)
    assert made_of(experience, rollout, reference=POLICY)[1]["objective/kl"] == 0
    # Logits times 0.7, scored at 0.7, are the policy at 1: what tunix at HEAD and EasyLM compare.
    other = {"w": np.float32(0.7) * MODELS["old"]}
    assert abs(made_of(experience, rollout, reference=other)[1]["objective/kl"]) > 0.05
    tokens = np.concatenate([rollout.prompt, rollout.response], 1)
    logits = MODELS["old"][tokens[:, 1:-1]].astype(np.float64) / 0.7
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    drawn = np.take_along_axis(log_probs, tokens[:, 2:, None], -1)[..., 0] * rollout.mask
    np.testing.assert_allclose(score(POLICY, rollout)[0], drawn, rtol=1e-5, atol=1e-6)


def check(score, rollout, keys):
    scores = jnp.zeros(len(DRAWN))
    log_probs, floats = lambda *given: score(*given)[0], {"rewards": scores}
    return check_identities(log_probs, POLICY, POLICY, rollout, floats, keys, "float32")


KEYS = jax.random.split(jax.random.key(0), 2 * len(DRAWN)).reshape(2, -1)


def test_retokenised_responses_and_key_reuse(score):
    """Ids that are not those drawn, or keys drawn with before, stop the run before its first update."""
    rollout = rollout_until(stops=True)
    drawn = replace(rollout, sampler_log_probs=score(POLICY, rollout)[0])
    assert check(score, drawn, KEYS)["self_check/sampler_gap"] == 0
    # As if two tokens of one reply read as one text, which another token would encode.
    again = replace(drawn, response=drawn.response.at[1, 1].set(6))
    with pytest.raises(SelfCheckFailed, match="'sampling and teacher forcing agree' does not hold"):
        check(score, again, KEYS)
    with pytest.raises(SelfCheckFailed, match="'each request of each iteration has its own key' does not"):
        check(score, drawn, KEYS[jnp.array([0, 0])])


def test_the_end_is_looked_for_in_the_reply_alone_and_by_the_token_that_ends_it(experience):
    """Elsewhere the prompt is searched too, or the end-of-text token where another one stops."""
    rollout = rollout_until(stops=True)
    prompt = rollout.prompt.at[1, 0].set(END)  # the reply of row 1 never ends
    wanted, _ = made_of(experience, rollout)
    found, _ = made_of(experience, replace(rollout, prompt=prompt, prompt_mask=prompt > 0))
    np.testing.assert_array_equal(found.rewards, wanted.rewards)

    whole = rollout_until(stops=False)
    cut = cut_replies(replace(whole, prompt=jnp.full_like(prompt, DOT)), (DOT,), 3)
    # Row 0 ends at slot 4; row 1 too early for `after`; row 2 holds an end token as well; row 3 two stops.
    assert cut.ended.tolist() == [True, False, True, True]
    assert cut.mask.sum(1).tolist() == [5, 6, 5, 4]
    np.testing.assert_array_equal(cut.response, whole.response)
    # What is cut away already does not end a reply.
    assert cut_replies(cut, (5,), 5).ended.tolist() == [False, True, False, False]


def test_rank_local_whitening():
    """Over eight devices as on one; statistics of each device's rows would give something else."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (16, 5)).astype(np.float32) + np.arange(16)[:, None]
    mask = (np.arange(5) < rng.integers(1, 6, (16, 1))).astype(np.float32)
    whole, mesh = np.asarray(masked_whiten(x, mask)), make_mesh(MeshConfig(data=8))
    placed = place((x, mask), mesh)
    assert {shard.data.shape for shard in placed[0].addressable_shards} == {(2, 5)}
    with jax.set_mesh(mesh):
        spread = jax.jit(masked_whiten)(*placed)
    np.testing.assert_allclose(spread, whole, atol=1e-6)
    kept = whole[mask > 0]
    np.testing.assert_allclose([kept.mean(), kept.std()], [0, 1], atol=1e-6)
    local = np.concatenate([masked_whiten(x[i : i + 2], mask[i : i + 2]) for i in range(0, 16, 2)])
    assert np.abs(local - whole).max() > 0.5


def test_value_head_from_the_policy_s_trunk_starts_at_zero():
    rng = np.random.default_rng(0)
    reward = SimpleNamespace(
        params={"decoder": {"x": rng.normal(size=3)}, "head": np.ones(2), "bias": np.ones(1)}
    )
    base = SimpleNamespace(params={"decoder": {"x": rng.normal(size=3)}, "unembedding": np.ones(4)})
    assert initial_critic(CONFIG, base, reward) is reward.params
    config = replace(CONFIG, conventions=replace(CONFIG.conventions, critic_from="policy"))
    start = initial_critic(config, base, reward)
    assert start.keys() == reward.params.keys() and not start["head"].any() and not start["bias"].any()
    np.testing.assert_array_equal(start["decoder"]["x"], base.params["decoder"]["x"])
    base.params["decoder"]["x"] = np.ones(5)
    with pytest.raises(
        ConfigError, match="critic_from = 'policy' needs a reward model of the policy's shape"
    ):
        initial_critic(config, base, reward)


def test_every_defect_of_the_list_has_its_test():
    rows = table("docs/conventions.md", "Defects of other implementations")
    assert len(rows) > 12
    for defect, _, tests in rows:
        for file, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", tests):
            source = (Path(__file__).parent.parent / file).read_text("utf-8")
            assert f"def {name}(" in source, f"{defect}: {file} has no test {name}"
        assert "::" in tests, defect
