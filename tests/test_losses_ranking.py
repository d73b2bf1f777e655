import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.losses.ranking import pair_matrix, pairwise_loss, ranking_loss

# One compilation a function instead of one an operation.
ranking_loss = jax.jit(ranking_loss, static_argnames="centring")
pairwise_loss = jax.jit(pairwise_loss, static_argnames="centring")


def softplus(x):
    return math.log1p(math.exp(x))


def sample(groups=6, completions=5):
    rng = np.random.default_rng(0)
    rewards = jnp.asarray(rng.normal(size=(groups, completions)), jnp.float32)
    scores = jnp.asarray(rng.integers(0, 4, (groups, completions)), jnp.float32)
    valid = jnp.asarray(rng.random((groups, completions)) < 0.8)
    return rewards, scores, valid


def numpy_ranking_loss(rewards, scores, valid, margin_scale=0.0, centring=0.0):
    per_group, correct = [], []
    for r, s, v in zip(*(np.asarray(x, np.float64) for x in (rewards, scores, valid)), strict=True):
        pairs = [(i, j) for i in range(len(r)) for j in range(len(r)) if v[i] and v[j] and s[i] > s[j]]
        if pairs:
            losses = [softplus(-(r[i] - r[j] - margin_scale * (s[i] - s[j]))) for i, j in pairs]
            per_group.append(np.mean(losses) + centring * np.mean([(r[i] + r[j]) ** 2 for i, j in pairs]))
            correct.append(np.mean([r[i] > r[j] for i, j in pairs]))
    return np.mean(per_group), np.mean(correct)


def test_pairs_leave_out_ties_and_padding():
    pairs = pair_matrix(jnp.array([[2.0, 5.0, 2.0, jnp.nan]]), jnp.array([[1, 1, 1, 0]]))
    assert np.argwhere(pairs[0]).tolist() == [[1, 0], [1, 2]]


def test_three_completions_by_hand():
    rewards, scores = jnp.array([[2.0, 0.0, 1.0]]), jnp.array([[5, 3, 1]])
    loss, metrics = ranking_loss(rewards, scores, jnp.ones((1, 3)))
    np.testing.assert_allclose(loss, (softplus(-2) + softplus(-1) + softplus(1)) / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["margin"], (2 + 1 - 1) / 3, rtol=1e-6)
    assert (metrics["pairs"], metrics["ties"], metrics["groups"]) == (3, 0, 1)
    loss, _ = ranking_loss(rewards, scores, jnp.ones((1, 3)), margin_scale=0.5)
    # Margins 1, 2 and 1 on the differences 2, 1 and -1.
    np.testing.assert_allclose(loss, (softplus(-1) + softplus(1) + softplus(2)) / 3, rtol=1e-6)


def test_three_completions_gradient_by_hand():
    rewards, scores = jnp.array([[2.0, 0.0, 1.0]]), jnp.array([[5, 3, 1]])
    gradient = jax.grad(lambda r: ranking_loss(r, scores, jnp.ones((1, 3)))[0])(rewards)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    pull_01, pull_02, pull_12 = sigmoid(-2) / 3, sigmoid(-1) / 3, sigmoid(1) / 3
    expected = [[-pull_01 - pull_02, pull_01 - pull_12, pull_02 + pull_12]]
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


@pytest.mark.parametrize(("margin_scale", "centring"), [(0.0, 0.0), (0.3, 0.0), (0.3, 0.1)])
def test_matches_a_loop_over_pairs(margin_scale, centring):
    rewards, scores, valid = sample()
    loss, metrics = ranking_loss(rewards, scores, valid, margin_scale=margin_scale, centring=centring)
    expected, accuracy = numpy_ranking_loss(rewards, scores, valid, margin_scale, centring)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-6)
    possible = sum(math.comb(int(n), 2) for n in valid.sum(1))
    assert metrics["ties"] > 0
    assert metrics["pairs"] + metrics["ties"] == possible


def test_every_group_weighs_the_same_however_many_pairs_it_has():
    rewards = jnp.array([[0.0, 0, 0, 0], [1, 0, 0, 0]])
    valid = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    loss, _ = ranking_loss(rewards, jnp.array([[4, 3, 2, 1], [1, 0, 0, 0]]), valid)
    np.testing.assert_allclose(loss, (math.log(2) + softplus(-1)) / 2, rtol=1e-6)


def test_a_group_of_ties_or_of_one_has_no_weight():
    rewards = jnp.array([[1.0, 0.0], [5.0, -5.0], [9.0, 3.0]])
    scores, valid = jnp.array([[1, 0], [2, 2], [1, 0]]), jnp.array([[1, 1], [1, 1], [1, 0]])
    loss, metrics = ranking_loss(rewards, scores, valid)
    np.testing.assert_allclose(loss, softplus(-1), rtol=1e-6)
    assert (metrics["groups"], metrics["pairs"], metrics["ties"]) == (1, 1, 1)
    nothing = jax.value_and_grad(lambda r: ranking_loss(r, scores, 0 * valid)[0])(rewards)
    assert nothing[0] == 0
    np.testing.assert_array_equal(nothing[1], jnp.zeros_like(rewards))


def test_order_and_padding_of_completions_do_not_matter():
    rewards, scores, valid = sample()
    loss, metrics = ranking_loss(rewards, scores, valid, margin_scale=0.2)
    order = np.random.default_rng(1).permutation(5)
    shuffled = ranking_loss(*(x[:, order] for x in (rewards, scores, valid)), margin_scale=0.2)
    padded = ranking_loss(
        jnp.pad(rewards, ((0, 0), (3, 2)), constant_values=jnp.nan),
        jnp.pad(scores, ((0, 0), (3, 2)), constant_values=jnp.inf),
        jnp.pad(valid, ((0, 0), (3, 2))),
        margin_scale=0.2,
    )
    for other in (shuffled, padded):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), other, (loss, metrics))


def test_poison_in_the_padding_leaves_no_trace_in_the_gradient():
    rewards, scores, valid = sample()
    gradient = jax.grad(lambda r: ranking_loss(r, scores, valid, margin_scale=0.1)[0])
    poisoned = jnp.where(valid, rewards, jnp.nan)
    assert jnp.isnan(poisoned).any()
    np.testing.assert_array_equal(gradient(poisoned), gradient(rewards))


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_micro_batches_add_up_under_the_count_of_groups(parts):
    rewards, scores, valid = sample()
    scores = scores.at[0].set(1)
    whole = jax.value_and_grad(lambda r: ranking_loss(r, scores, valid)[0])(rewards)
    groups = ranking_loss(rewards, scores, valid)[1]["groups"]
    assert groups == 5
    loss, gradients = 0.0, []
    for r, s, v in zip(*(jnp.split(x, parts) for x in (rewards, scores, valid)), strict=True):
        value, gradient = jax.value_and_grad(
            lambda r, s=s, v=v: ranking_loss(r, s, v, denominator=groups)[0]
        )(r)
        loss += value
        gradients.append(gradient)
    np.testing.assert_allclose(loss, whole[0], rtol=1e-6)
    np.testing.assert_allclose(jnp.concatenate(gradients), whole[1], rtol=1e-5, atol=1e-7)


def test_pairs_are_the_case_of_two_completions():
    rng = np.random.default_rng(2)
    chosen, rejected = jnp.asarray(rng.normal(size=(2, 7)), jnp.float32)
    both, ones = jnp.stack([chosen, rejected], 1), jnp.ones((7, 2))
    scores = jnp.tile(jnp.array([3.0, 1.0]), (7, 1))
    for margin, scale, centring in ((None, 0.0, 0.0), (jnp.full(7, 0.5), 0.25, 0.1)):
        loss, metrics = pairwise_loss(chosen, rejected, margin, centring=centring)
        expected, ranked = ranking_loss(both, scores, ones, margin_scale=scale, centring=centring)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        for name in metrics:
            np.testing.assert_allclose(metrics[name], ranked[name], rtol=1e-6)
    halves = [
        pairwise_loss(chosen[part], rejected[part], denominator=7)[0] for part in (slice(3), slice(3, 7))
    ]
    np.testing.assert_allclose(sum(halves), pairwise_loss(chosen, rejected)[0], rtol=1e-6)


def test_large_differences_do_not_overflow():
    loss, gradient = jax.value_and_grad(lambda r: pairwise_loss(r, jnp.zeros(1))[0])(jnp.array([-1e4]))
    assert loss == 1e4 and gradient == -1


def test_rewards_keep_their_fraction():
    loss = pairwise_loss(jnp.array([0.7]), jnp.array([0.0]))[0]
    np.testing.assert_allclose(loss, softplus(-0.7), rtol=1e-6)
    loss = ranking_loss(jnp.array([[0.7, 0.0]]), jnp.array([[1, 0]]), jnp.array([[1, 1]]))[0]
    np.testing.assert_allclose(loss, softplus(-0.7), rtol=1e-6)
    with pytest.raises(TypeError, match="rewards have dtype int32"):
        ranking_loss(jnp.array([[1, 0]]), jnp.array([[1, 0]]), jnp.array([[1, 1]]))
    with pytest.raises(TypeError, match="chosen rewards have dtype int32"):
        pairwise_loss(jnp.array([1]), jnp.array([0.0]))
