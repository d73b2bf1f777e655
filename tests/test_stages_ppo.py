"""PPO's rollout quantities, losses and self-check: identities, invariances, and what breaks them."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ppo_case import CONFIG, OPTIMIZER, B, drawn, make_case, moved, text_batch

from gptjax.losses.ppo import policy_loss
from gptjax.sharding.mesh import MeshConfig, make_mesh, place
from gptjax.stages.experience import (
    count_totals,
    make_experience,
    make_policy_loss,
    make_score,
    make_value_loss,
)
from gptjax.stages.language_loss import count_tokens, make_language_loss
from gptjax.stages.ppo_iteration import minibatch_order
from gptjax.stages.rollout import (
    Rollout,
    exact_divergences,
    response_log_probs,
    response_values,
    reward_scores,
)
from gptjax.stages.self_check import (
    SelfCheck,
    SelfCheckFailed,
    check_due,
    check_first_ratio,
    check_identities,
    padded_right,
    padding_gap,
)
from gptjax.stages.sharded import compile_step, create_state
from gptjax.training.optimizers import make_optimizer
from gptjax.training.step import make_train_step


@pytest.fixture(scope="module")
def case():
    return make_case()


@pytest.fixture(scope="module")
def rollout(case):
    rollout = drawn(case)
    lengths = np.asarray(rollout.mask).sum(1)
    assert len(set(lengths)) > 2 and not rollout.ended.all()
    return rollout


@pytest.fixture(scope="module")
def score(case):
    return make_score(CONFIG, case.language)


@pytest.fixture(scope="module")
def log_probs(score):
    return lambda params, rollout: score(params, rollout)[0]


@pytest.fixture(scope="module")
def experience(case, score):
    return make_experience(CONFIG, score, case.scalar)


KEYS = jax.random.split(jax.random.key(5), 2 * B).reshape(2, B)


def check(case, rollout, log_probs, *, reference=None, keys=KEYS, dtype=jnp.float32, number=0, padding=None):
    """The self-check of a fresh policy, with one thing replaced."""
    reference = case.policy if reference is None else reference
    floats = {"rewards": jnp.arange(B).astype(dtype)}
    given = log_probs, case.policy, reference, rollout, floats, keys, "float32", number, padding
    return check_identities(*given)


def test_self_check_passes_on_a_fresh_policy(case, rollout, log_probs, capsys):
    gaps = check(case, rollout, log_probs)
    assert gaps.pop("self_check/kl_of_equal_models") == 0
    assert len(gaps) == 4 and max(gaps.values()) < 1e-5
    assert capsys.readouterr().out == "self-check passed, 9 identities hold\n"


def test_later_the_reference_is_another_and_the_rest_must_hold(case, rollout, log_probs, capsys):
    gaps = check(case, rollout, log_probs, reference=case.reference, number=20)
    assert "self_check/kl_of_equal_models" not in gaps and max(gaps.values()) < 1e-5
    assert not capsys.readouterr().out
    with pytest.raises(SelfCheckFailed, match="iteration 21: 'rewards, values and log-probabilities are"):
        check(case, rollout, log_probs, dtype=jnp.int32, number=20)
    config = dataclasses.replace(CONFIG, self_check_every=20)
    assert [number for number in range(50) if check_due(config, number)] == [0, 20, 40]
    assert not check_due(dataclasses.replace(config, self_check=False), 0)


def test_padded_right_is_the_same_dialogues_without_gaps(rollout):
    right, places = padded_right(rollout)
    assert right.prompt_mask.all() and (np.diff(right.mask, axis=1) <= 0).all()
    for row in range(B):
        prompt = rollout.prompt[row][rollout.prompt_mask[row]].tolist()
        reply = rollout.response[row][rollout.mask[row] > 0].tolist()
        said = right.response[row][right.mask[row] > 0].tolist()
        assert right.prompt[row].tolist() + said == prompt + reply
        assert right.response[row][places[row, : len(reply)]].tolist() == reply


@pytest.mark.slow
def test_exact_kl_is_the_mean_of_what_samples_estimate(case, rollout, score):
    """In every state the k1 of a token, weighted by the token's probability, over the whole vocabulary."""
    V, T, temperature = case.language.config.vocab_size, rollout.mask.shape[1], CONFIG.sampling.temperature
    expected = np.zeros((B, T))
    for token in range(V):
        other = dataclasses.replace(rollout, response=jnp.full_like(rollout.response, token))
        # Only the first slot: after it the state is another.
        ours, theirs = (np.asarray(score(p, other)[0], float) for p in (case.policy, case.reference))
        expected[:, 0] += np.exp(ours[:, 0]) * (ours[:, 0] - theirs[:, 0])
    first = dataclasses.replace(rollout, mask=rollout.mask.at[:, 1:].set(0.0))
    models = case.language, case.policy, case.reference
    exact = exact_divergences(*models, first, temperature)
    np.testing.assert_allclose(exact, expected[:, 0], rtol=1e-4, atol=1e-6)
    whole = exact_divergences(*models, rollout, temperature)
    assert (whole >= exact).all() and (whole > exact).any()


def without_a_token(rollout):
    return dataclasses.replace(rollout, mask=rollout.mask.at[3].set(0.0))


def blind_to_padding(log_probs):
    """Forgets which prompt slots are padding."""
    return lambda params, r: log_probs(
        params, dataclasses.replace(r, prompt_mask=jnp.ones_like(r.prompt_mask))
    )


class Blind:
    """A scalar model that counts padding: its scalar is the number of the slot."""

    def apply(self, params, tokens, **_):
        return jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.float32), tokens.shape)


def test_padding_changes_no_value_and_no_score(case, rollout):
    gap = jax.jit(lambda params: padding_gap(case.scalar, params, rollout))
    assert max(gap(case.critic), gap(case.reward)) < 1e-5


def test_the_first_iteration_of_a_start_is_checked_whatever_its_number():
    config = dataclasses.replace(CONFIG, self_check_every=20)
    language = SimpleNamespace(config=SimpleNamespace(compute_dtype="float32"))
    fresh, resumed, off = (
        SelfCheck(c, language, None) for c in (config, config, dataclasses.replace(config, self_check=False))
    )
    assert [number for number in range(50) if fresh.due(number)] == [0, 20, 40]
    assert [number for number in range(7, 50) if resumed.due(number)] == [7, 20, 40]
    assert not any(off.due(number) for number in range(7, 50))
    found = {"val/ratio_spread": jnp.float32(1e-14)}
    logged = {number: resumed.of_update(found, number) for number in (7, 8, 20)}
    assert logged == {7: {}, 8: {}, 20: {"self_check/first_ratio_gap": pytest.approx(1e-7)}}
    with pytest.raises(SelfCheckFailed, match="iteration 8: 'the probability ratio is 1"):
        resumed.of_update({"val/ratio_spread": jnp.float32(1.0)}, 7)


def first_ratio(case, rollout, temperature):
    """The check of the first update, the policy scored at `temperature` when the rollout was made."""
    old, _ = response_log_probs(case.language, case.policy, rollout, temperature)
    new, _ = response_log_probs(case.language, case.policy, rollout, CONFIG.sampling.temperature)
    _, metrics = policy_loss(new, old, jnp.ones_like(new), rollout.mask, clip=0.2)
    return check_first_ratio(metrics, "float32")


BROKEN = {
    "KL of policy and reference is 0": lambda c, r, f: check(c, r, f, reference=c.reference),
    "the probability ratio is 1 on the first pass": lambda c, r, f: first_ratio(c, r, 1.0),
    "sampling and teacher forcing agree": lambda c, r, f: check(
        c, r, jax.jit(lambda params, rollout: response_log_probs(c.language, params, rollout, 1.0)[0])
    ),
    "left padding changes nothing": lambda c, r, f: check(
        c, dataclasses.replace(r, sampler_log_probs=blind_to_padding(f)(c.policy, r)), blind_to_padding(f)
    ),
    "batch size changes nothing": lambda c, r, f: check(
        c,
        dataclasses.replace(r, sampler_log_probs=f(c.policy, r) * B),
        lambda params, rollout: f(params, rollout) * len(rollout.mask),
    ),
    "right padding changes nothing": lambda c, r, f: check(
        c, r, lambda params, rollout: f(params, rollout) + (rollout.prompt.shape[1] == 1)
    ),
    "padding changes no value and no score": lambda c, r, f: check(
        c, r, f, padding={"critic": 0.0, "reward": padding_gap(Blind(), c.reward, r)}
    ),
    "rewards, values and log-probabilities are float32": lambda c, r, f: check(c, r, f, dtype=jnp.int32),
    "each request of each iteration has its own key": lambda c, r, f: check(
        c, r, f, keys=jnp.stack([KEYS[0], KEYS[0]])
    ),
    "every response has a token": lambda c, r, f: check(c, without_a_token(r), f),
}


@pytest.mark.parametrize("identity", BROKEN)
def test_self_check_names_the_identity_that_fails(case, rollout, log_probs, identity):
    with pytest.raises(SelfCheckFailed, match=f"'{identity}' does not hold") as failure:
        BROKEN[identity](case, rollout, log_probs)
    assert failure.value.exit_code == 70


def wider(rollout: Rollout, slots: int) -> Rollout:
    """The same prompts and replies behind more padding."""
    prompt, mask = (jnp.pad(x, ((0, 0), (slots, 0))) for x in (rollout.prompt, rollout.prompt_mask))
    return dataclasses.replace(rollout, prompt=prompt, prompt_mask=mask)


def test_the_first_ratio_may_differ_from_1_by_rounding_alone(case, rollout):
    gap = first_ratio(case, rollout, CONFIG.sampling.temperature)["self_check/first_ratio_gap"]
    assert gap < 1e-6


def test_left_padding_changes_nothing(case, rollout):
    @jax.jit
    def say(r):
        log_probs, entropies = response_log_probs(case.language, case.policy, r, 0.7)
        values = response_values(case.scalar, case.critic, r)
        return log_probs, entropies, values, reward_scores(case.scalar, case.reward, r)

    for plain, padded in zip(say(rollout), say(wider(rollout, 3)), strict=True):
        assert np.ptp(plain) > 0.1
        np.testing.assert_allclose(padded, plain, atol=1e-5)


def test_kl_is_exactly_0_before_the_first_update(case, rollout, experience):
    _, metrics = experience(case.policy, case.critic, case.policy, case.reward, rollout, 0.3)
    assert metrics["objective/kl"] == 0
    assert abs(metrics["objective/non_score_reward"]) < 1e-6
    assert metrics["val/sampler_gap"] < 1e-5
    _, apart = experience(case.policy, case.critic, case.reference, case.reward, rollout, 0.3)
    assert abs(apart["objective/kl"]) > 1e-3


@pytest.mark.parametrize("kind", ["subtract", "replace"])
def test_a_reply_that_never_ends_is_punished(case, rollout, score, kind):
    config = dataclasses.replace(CONFIG, missing_eos=kind, gamma=1.0, gae_lambda=1.0)
    experience = make_experience(config, score, case.scalar)
    made, metrics = experience(case.policy, case.critic, case.policy, case.reward, rollout, 0.3)
    raw = np.asarray(reward_scores(case.scalar, case.reward, rollout))
    punished = raw - 0.75 if kind == "subtract" else np.full_like(raw, -0.75)
    expected = np.where(rollout.ended, raw, punished)
    # Without discount, trace or KL the return at the first token is the whole reward.
    np.testing.assert_allclose(made.returns[:, 0], expected, atol=1e-5)
    np.testing.assert_allclose(metrics["objective/raw_scores"], raw.mean(), atol=1e-5)
    np.testing.assert_allclose(metrics["objective/scores"], expected.mean(), atol=1e-5)


def test_what_the_members_of_an_ensemble_disagree_about_is_worth_less(case, rollout, score):
    other = moved(case.reward, 0.2, 9)
    each = np.stack([reward_scores(case.scalar, params, rollout) for params in (case.reward, other)])
    config = dataclasses.replace(
        CONFIG, ensemble=("other",), disagreement_penalty=2.0, missing_eos_penalty=0.0
    )
    experience = make_experience(config, score, case.scalar)
    _, metrics = experience(case.policy, case.critic, case.policy, (case.reward, other), rollout, 0.3)
    spread = np.abs(each[0] - each[1]) / 2
    assert spread.max() > 0.1
    np.testing.assert_allclose(metrics["val/disagreement"], spread.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["objective/scores"], (each.mean(0) - 2 * spread).mean(), rtol=1e-4)


@pytest.fixture(scope="module")
def minibatch(case, rollout, experience):
    """A minibatch as the updates see it, and a policy and a critic that have moved since the rollout."""
    made, _ = experience(case.policy, case.critic, case.reference, case.reward, rollout, 0.3)
    batch = jax.device_get({"experience": made, "text": text_batch(0)})
    return batch, moved(case.policy, 0.02, 7), moved(case.critic, 0.2, 8)


@pytest.mark.slow
def test_ptx_adds_its_gradient_in_the_same_step(case, minibatch):
    batch, policy, _ = minibatch
    plain = make_policy_loss(dataclasses.replace(CONFIG, ptx_coef=0.0), case.language)
    both, text = make_policy_loss(CONFIG, case.language), make_language_loss(case.language)

    @jax.jit
    def gradients(params):
        totals, key = count_totals(batch), jax.random.key(0)
        text_total = count_tokens(batch["text"])
        return (
            jax.grad(both, has_aux=True)(params, batch, totals, key)[0],
            jax.grad(plain, has_aux=True)(params, batch, totals, key)[0],
            jax.grad(text, has_aux=True)(params, batch["text"], text_total, key)[0],
        )

    total, ppo, ptx = gradients(policy)
    assert all(optax.tree.norm(part) > 0.01 for part in (ppo, ptx))
    for t, p, x in zip(*map(jax.tree.leaves, (total, ppo, ptx)), strict=True):
        np.testing.assert_allclose(t, p + CONFIG.ptx_coef * x, rtol=1e-5, atol=1e-6)


def one_step(definition, params, loss_fn, batch, mesh_config, accumulate):
    """Parameters and metrics after one update, on the host."""
    mesh, optimizer = make_mesh(mesh_config), make_optimizer(OPTIMIZER, 10, definition.axes)
    state = create_state(definition, optimizer, mesh, params=params)
    step = make_train_step(loss_fn, count_totals, optimizer, accumulate=accumulate)
    state, metrics = compile_step(step, mesh)(state, place(batch, mesh), jax.random.key(0))
    return jax.device_get((state.params, metrics))


@pytest.fixture(scope="module")
def updates(case, minibatch):
    batch, policy, critic = minibatch
    stages = {
        "policy": (case.language, policy, make_policy_loss(CONFIG, case.language), batch),
        "value": (
            case.scalar,
            critic,
            make_value_loss(CONFIG, case.scalar),
            {"experience": batch["experience"]},
        ),
    }
    return {name: (stage, one_step(*stage, MeshConfig(), 1)) for name, stage in stages.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mesh", "accumulate"),
    [("policy", MeshConfig(data=8), 1), ("policy", MeshConfig(), 2), ("value", MeshConfig(data=2), 2)],
)
def test_an_update_does_not_depend_on_devices_or_micro_batches(updates, name, mesh, accumulate):
    stage, (expected, expected_metrics) = updates[name]
    got, metrics = one_step(*stage, mesh, accumulate)
    start = jax.tree.leaves(stage[1])
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(jax.tree.leaves(expected), start, strict=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), got, expected)
    for key, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[key], value, atol=2e-6, rtol=2e-6, err_msg=key)
    if name == "policy":
        assert metrics["policy/clipfrac_avg"] > 0 and metrics["val/ratio_spread"] > 0


def test_minibatches_are_a_new_permutation_in_every_epoch_and_iteration():
    config = dataclasses.replace(CONFIG, batch_size=32, minibatches=4, epochs=2)
    order = minibatch_order(config, 0)
    assert order.shape == (8, 8)
    for epoch in (order[:4], order[4:]):
        assert sorted(epoch.ravel()) == list(range(32))
    assert (order[:4] != order[4:]).any()
    assert (order != minibatch_order(config, 1)).any()
    assert (order != minibatch_order(dataclasses.replace(config, seed=1), 0)).any()
    np.testing.assert_array_equal(order, minibatch_order(config, 0))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"minibatches": 3}, "minibatches = 3 does not divide batch_size = 8"),
        ({"accumulate": 3}, "batch_size = 8 does not divide into 1 mesh parts"),
        ({"sampling": dataclasses.replace(CONFIG.sampling, top_k=5)}, "sampling must have top_k 0"),
        ({"corpora": {}}, "ptx_coef needs corpora"),
        ({"kl_coef": 0.0, "kl_target": 6.0}, "kl_target has no effect on kl_coef = 0"),
        ({"ptx_rows": 3, "accumulate": 2}, "ptx_rows = 3 must be a multiple"),
    ],
)
def test_impossible_settings_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(CONFIG, **change)
