import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.losses.rewards import (
    cautious_scores,
    empty_responses,
    eos_penalty,
    generalized_advantages,
    kl_estimate,
    token_rewards,
    update_kl_coefficient,
    with_slot_after,
)

# One compilation a function instead of one an operation.
token_rewards = jax.jit(token_rewards, static_argnames=("kl_estimator", "score_at"))
generalized_advantages = jax.jit(generalized_advantages)


def sample(batch=5, time=7):
    rng = np.random.default_rng(0)
    lengths = np.array([7, 1, 4, 0, 6])[:batch]
    mask = jnp.asarray(np.arange(time) < lengths[:, None], jnp.float32)
    log_probs, reference, values = jnp.asarray(rng.normal(size=(3, batch, time)), jnp.float32)
    scores = jnp.asarray(rng.normal(size=batch), jnp.float32)
    return scores, log_probs, reference, values, mask


def numpy_advantages(rewards, values, lengths, gamma, gae_lambda):
    """The definition, summed forwards: A_t = sum_k (gamma lambda)^k delta_{t+k}."""
    advantages = np.zeros(rewards.shape)
    for row, length in enumerate(lengths):
        value = np.append(np.asarray(values[row, :length], np.float64), 0)
        delta = np.asarray(rewards[row, :length], np.float64) + gamma * value[1:] - value[:-1]
        for t in range(length):
            advantages[row, t] = sum((gamma * gae_lambda) ** (k - t) * delta[k] for k in range(t, length))
    return advantages


def test_estimators_average_to_the_divergence_of_two_known_distributions():
    policy, reference = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    log_ratio = jnp.asarray(np.log(policy / reference), jnp.float32)
    divergence = np.sum(policy * np.log(policy / reference))
    np.testing.assert_allclose(np.sum(policy * kl_estimate(log_ratio, "k1")), divergence, rtol=1e-6)
    np.testing.assert_allclose(np.sum(policy * kl_estimate(log_ratio, "k3")), divergence, rtol=1e-6)
    k2 = np.sum(policy * 0.5 * np.log(policy / reference) ** 2)
    np.testing.assert_allclose(np.sum(policy * kl_estimate(log_ratio, "k2")), k2, rtol=1e-6)
    # With the sign turned round k3 estimates chi-squared minus KL instead.
    chi_squared = np.sum(policy**2 / reference) - 1
    wrong = np.sum(policy * kl_estimate(-log_ratio, "k3"))
    np.testing.assert_allclose(wrong, chi_squared - divergence, rtol=1e-5)
    assert abs(wrong - divergence) > 0.05


def test_estimators_by_hand():
    log_ratio = jnp.array([0.5, -0.5, 0.0])
    np.testing.assert_array_equal(kl_estimate(log_ratio, "k1"), [0.5, -0.5, 0])
    np.testing.assert_array_equal(kl_estimate(log_ratio, "k2"), [0.125, 0.125, 0])
    expected = [math.exp(-0.5) - 0.5, math.exp(0.5) - 1.5, 0]
    np.testing.assert_allclose(kl_estimate(log_ratio, "k3"), expected, rtol=1e-6, atol=0)
    # exp(-x) - 1 + x cancels for small x; its value is x^2 / 2.
    assert kl_estimate(jnp.float32(1e-3), "k3") == pytest.approx(5e-7, rel=0.1)


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="'full' is unknown; choose k1, k2 or k3"):
        kl_estimate(jnp.zeros(1), "full")


def test_a_missing_end_is_punished():
    scores, has_eos = jnp.array([2.0, 2.0]), jnp.array([True, False])
    np.testing.assert_array_equal(eos_penalty(scores, has_eos, kind="replace", penalty=1.0), [2, -1])
    np.testing.assert_array_equal(eos_penalty(scores, has_eos, kind="subtract", penalty=0.5), [2, 1.5])
    with pytest.raises(ValueError, match="penalty is -1"):
        eos_penalty(scores, has_eos, kind="replace", penalty=-1.0)
    with pytest.raises(ValueError, match="'mask' is unknown"):
        eos_penalty(scores, has_eos, kind="mask", penalty=1.0)


def test_an_ensemble_pays_less_where_its_members_disagree():
    scores = jnp.array([[1.0, 2.0, -1.0], [3.0, 2.0, 1.0], [2.0, 2.0, 3.0]])
    deviations = np.sqrt([2 / 3, 0.0, 8 / 3])
    np.testing.assert_allclose(cautious_scores(scores, penalty=0.5), [2, 2, 1] - 0.5 * deviations, rtol=1e-6)
    np.testing.assert_array_equal(cautious_scores(scores[:1], penalty=0.5), scores[0])
    with pytest.raises(TypeError, match="scores"):
        cautious_scores(jnp.array([[1, 2]]), penalty=0.5)


@pytest.mark.parametrize("score", [0.7, 0.75, -1.6])
def test_a_reward_keeps_its_fraction(score):
    mask = jnp.array([[1, 1, 0]])
    rewards = token_rewards(jnp.array([score]), jnp.zeros((1, 3)), jnp.zeros((1, 3)), mask, kl_coef=0.1)
    assert rewards.dtype == jnp.float32
    np.testing.assert_array_equal(rewards, [[0, np.float32(score), 0]])
    half = token_rewards(
        jnp.array([0.75], jnp.bfloat16), *[jnp.zeros((1, 3), jnp.bfloat16)] * 2, mask, kl_coef=0.1
    )
    assert half.dtype == jnp.float32 and half[0, 1] == 0.75


def test_integer_scores_and_rewards_are_refused():
    zeros = jnp.zeros((1, 2))
    with pytest.raises(TypeError, match="scores have dtype int32"):
        token_rewards(jnp.array([1]), zeros, zeros, zeros, kl_coef=0.1)
    with pytest.raises(TypeError, match="scores have dtype int32"):
        eos_penalty(jnp.array([1]), jnp.array([True]), kind="replace", penalty=1.0)
    with pytest.raises(TypeError, match="rewards have dtype int32"):
        generalized_advantages(zeros.astype(int), zeros, zeros, gamma=1.0, gae_lambda=1.0)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_score_is_paid_once_at_the_last_token(estimator):
    scores, log_probs, reference, _, mask = sample()
    options = {"kl_coef": 0.2, "kl_estimator": estimator}
    rewards = token_rewards(scores, log_probs, reference, mask, **options)
    kl = np.asarray(kl_estimate(log_probs - reference, estimator) * mask)
    expected = -0.2 * kl
    for row, last in ((0, 6), (1, 0), (2, 3), (4, 5)):
        expected[row, last] += scores[row]
    np.testing.assert_allclose(rewards, expected, rtol=1e-6, atol=1e-7)
    without = token_rewards(0 * scores, log_probs, reference, mask, **options)
    np.testing.assert_allclose((rewards - without).sum(1), scores * (mask.sum(1) > 0), rtol=1e-5)


def test_a_policy_equal_to_its_reference_pays_exactly_nothing():
    scores, log_probs, _, _, mask = sample()
    for estimator in ("k1", "k2", "k3"):
        options = {"kl_coef": 5.0, "kl_estimator": estimator}
        rewards = token_rewards(0 * scores, log_probs, log_probs, mask, **options)
        np.testing.assert_array_equal(rewards, jnp.zeros_like(rewards))


def test_an_empty_response_gets_nothing_and_is_counted():
    scores, log_probs, reference, values, mask = sample()
    assert empty_responses(mask) == 1
    scores = scores.at[3].set(jnp.nan)
    rewards = token_rewards(scores, log_probs, reference, mask, kl_coef=0.1)
    np.testing.assert_array_equal(rewards[3], jnp.zeros(7))
    assert jnp.isfinite(rewards).all()
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=1.0, gae_lambda=0.95)
    np.testing.assert_array_equal(advantages[3], jnp.zeros(7))
    np.testing.assert_array_equal(returns[3], jnp.zeros(7))


def test_advantages_of_a_single_step_by_hand():
    rewards, values = jnp.array([[0.0, 0, 1, 0]]), jnp.array([[0.0, 1, 2, 3]])
    advantages, returns = generalized_advantages(rewards, values, jnp.ones((1, 4)), gamma=0.5, gae_lambda=0.0)
    np.testing.assert_array_equal(advantages, [[0.5, 0, 0.5, -3]])
    np.testing.assert_array_equal(returns, [[0.5, 1, 2.5, 0]])


def test_advantages_of_a_score_at_the_end_by_hand():
    values = jnp.array([[0.3, 0.4, 9.0]])
    rewards, mask = jnp.array([[0.0, 1.0, 7.0]]), jnp.array([[1, 1, 0]])
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=1.0, gae_lambda=0.95)
    # delta = (0 + .4 - .3, 1 - .4): the value and reward in the padding are not seen.
    np.testing.assert_allclose(advantages, [[0.1 + 0.95 * 0.6, 0.6, 0]], rtol=1e-6)
    np.testing.assert_allclose(returns, [[0.97, 1.0, 0]], rtol=1e-6)


def test_advantage_of_the_end_token_where_the_score_is_paid_after_it_by_hand():
    """`V' (1 - lambda) + lambda s - V` instead of `s - V`, with V before and V' after the end token."""
    values, mask, zeros = jnp.array([[0.3, 0.4, 9.0]]), jnp.array([[1, 0, 0]]), jnp.zeros((1, 3))
    for score_at, seen, expected in (("last_token", mask, 0.7), ("after_end", with_slot_after(mask), 0.67)):
        rewards = token_rewards(jnp.ones(1), zeros, zeros, mask, kl_coef=0.1, score_at=score_at)
        advantages, returns = generalized_advantages(rewards, values, seen, gamma=1.0, gae_lambda=0.95)
        np.testing.assert_allclose(advantages[0, 0], expected, rtol=1e-6)
    # The critic learns that what comes after the end is worth the score.
    np.testing.assert_allclose(returns, [[0.97, 1.0, 0]], rtol=1e-6)


def test_a_score_after_the_end_falls_on_the_last_slot_at_the_latest():
    scores, log_probs, reference, _, mask = sample()
    here, after = (
        np.asarray(token_rewards(scores, log_probs, reference, mask, kl_coef=0.2, score_at=score_at))
        for score_at in ("last_token", "after_end")
    )
    expected = here.copy()
    for row, last in ((1, 0), (2, 3), (4, 5)):
        expected[row, last] -= scores[row]
        expected[row, last + 1] += scores[row]
    # Row 0 fills all slots; row 3 has no token, where -1 + 1 would pay at slot 0.
    np.testing.assert_allclose(after, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(after[3], np.zeros(7))
    with pytest.raises(ValueError, match="score_at 'pad' is unknown; choose last_token or after_end"):
        token_rewards(scores, log_probs, reference, mask, kl_coef=0.2, score_at="pad")


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.7, 0.0)])
def test_advantages_match_the_definition(gamma, gae_lambda):
    _, rewards, _, values, mask = sample()
    lengths = np.asarray(mask.sum(1), int)
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=gamma, gae_lambda=gae_lambda)
    expected = numpy_advantages(rewards, values, lengths, gamma, gae_lambda)
    np.testing.assert_allclose(advantages, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(returns, (expected + np.asarray(values)) * mask, rtol=1e-5, atol=1e-6)


def test_monte_carlo_returns_do_not_depend_on_the_critic():
    _, rewards, _, values, mask = sample()
    _, returns = generalized_advantages(rewards, values, mask, gamma=1.0, gae_lambda=1.0)
    rest = jnp.cumsum((rewards * mask)[:, ::-1], 1)[:, ::-1] * mask
    np.testing.assert_allclose(returns, rest, rtol=1e-5, atol=1e-6)


def test_padding_on_either_side_and_what_it_holds_do_not_matter():
    scores, log_probs, reference, values, mask = sample()
    keep = np.array([0, 1, 2, 4])
    rows = [x[keep] for x in (log_probs, reference, values, mask)]
    lengths = np.asarray(rows[3].sum(1), int)

    def worth(log_probs, reference, values, mask):
        rewards = token_rewards(scores[keep], log_probs, reference, mask, kl_coef=0.3)
        return rewards, *generalized_advantages(rewards, values, mask, gamma=0.9, gae_lambda=0.8)

    def right(x, fill):
        return jnp.pad(jnp.where(rows[3] == 0, fill, x), ((0, 0), (0, 2)), constant_values=fill)

    def left(x, fill):
        return jnp.stack([jnp.roll(row, -n) for row, n in zip(right(x, fill), lengths, strict=True)])

    expected = worth(*rows)
    for pad in (right, left):
        result = worth(*(pad(x, jnp.nan) for x in rows[:3]), pad(rows[3], 0))
        for a, b in zip(result, expected, strict=True):
            np.testing.assert_allclose(a, pad(b, 0), rtol=1e-6, atol=1e-7)


def test_the_coefficient_moves_towards_its_target_and_not_too_fast():
    def update(kl):
        return update_kl_coefficient(0.1, kl, target=6.0, horizon=10_000, n=512)

    assert update(6.0) == np.float32(0.1)
    np.testing.assert_allclose(update(6.6), 0.1 * (1 + 0.1 * 512 / 10_000), rtol=1e-6)
    np.testing.assert_allclose(update(600.0), 0.1 * (1 + 0.2 * 512 / 10_000), rtol=1e-6)
    np.testing.assert_allclose(update(0.0), 0.1 * (1 - 0.2 * 512 / 10_000), rtol=1e-6)
    np.testing.assert_allclose(update(-3.0), update(0.0), rtol=1e-6)
    jitted = jax.jit(lambda coef, kl: update_kl_coefficient(coef, kl, 6.0, 10_000, 512))
    np.testing.assert_allclose(jitted(0.1, 6.6), update(6.6), rtol=1e-6)
    with pytest.raises(ValueError, match="target 0"):
        update_kl_coefficient(0.1, 1.0, target=0.0, horizon=10, n=1)
