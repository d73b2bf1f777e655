"""Plackett-Luce and best of n: by hand, against loops, and what both share with the loss of pairs."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.losses import listwise
from gptjax.losses.ranking import pairwise_loss

# One compilation a function instead of one an operation.
LOSSES = {name: jax.jit(getattr(listwise, name)) for name in ("plackett_luce_loss", "best_of_n_loss")}
plackett_luce_loss, best_of_n_loss = LOSSES.values()
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def sample(groups=6, completions=5):
    rng = np.random.default_rng(0)
    rewards = jnp.asarray(rng.normal(size=(groups, completions)), jnp.float32)
    scores = jnp.asarray(rng.integers(0, 4, (groups, completions)), jnp.float32)
    valid = jnp.asarray(rng.random((groups, completions)) < 0.8)
    return rewards, scores, valid


def looped(rewards, scores, valid, group_loss):
    """The mean of `group_loss(rewards, scores)` over the groups that have an order, in float64."""
    losses = []
    for r, s, v in zip(*(np.asarray(x, np.float64) for x in (rewards, scores, valid)), strict=True):
        r, s = r[v > 0], s[v > 0]
        if len(set(s)) > 1:
            losses.append(group_loss(r, s))
    return np.mean(losses)


def choices(r, s):
    """Every completion that has a worse one is chosen among itself and those."""
    rest = [[r[k], *r[s < s[k]]] for k in range(len(r)) if (s < s[k]).any()]
    return np.mean([np.log(np.exp(candidates).sum()) - candidates[0] for candidates in rest])


def best(r, s):
    probability = np.exp(r) / np.exp(r).sum()
    return -np.log(probability[s == s.max()].sum())


def test_three_completions_by_hand():
    rewards, scores = jnp.array([[2.0, 0.0, 1.0]]), jnp.array([[5, 3, 1]])
    first, second = math.log(1 + math.exp(-2) + math.exp(-1)), math.log(1 + math.exp(1))
    loss, metrics = plackett_luce_loss(rewards, scores, jnp.ones((1, 3)))
    np.testing.assert_allclose(loss, (first + second) / 2, rtol=1e-6)
    assert (metrics["pairs"], metrics["ties"], metrics["groups"]) == (3, 0, 1)
    np.testing.assert_allclose([metrics["accuracy"], metrics["margin"]], [2 / 3, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(best_of_n_loss(rewards, scores, jnp.ones((1, 3)))[0], first, rtol=1e-6)
    assert metrics["loss"] == loss


def test_gradients_by_hand():
    """The probability of being chosen minus whether it was."""
    rewards, scores = jnp.array([[2.0, 0.0, 1.0]]), jnp.array([[5, 3, 1]])
    softmax = np.exp([2.0, 0.0, 1.0]) / np.exp([2.0, 0.0, 1.0]).sum()
    among_two = np.array([0.0, 1.0, math.e]) / (1 + math.e)
    gradient = jax.grad(lambda r: best_of_n_loss(r, scores, jnp.ones((1, 3)))[0])(rewards)
    np.testing.assert_allclose(gradient[0], softmax - [1, 0, 0], rtol=1e-5)
    gradient = jax.grad(lambda r: plackett_luce_loss(r, scores, jnp.ones((1, 3)))[0])(rewards)
    expected = (softmax - [1, 0, 0] + among_two - [0, 1, 0]) / 2
    np.testing.assert_allclose(gradient[0], expected, rtol=1e-5)


def test_the_rankings_of_four_have_probabilities_that_add_up_to_1():
    rewards = jnp.array([[0.3, -1.0, 2.0, 0.5]])
    orders = jnp.array(list(itertools.permutations(range(4))))
    losses = jax.vmap(lambda order: plackett_luce_loss(rewards, order[None], jnp.ones((1, 4)))[0])(orders)
    # The mean over three choices.
    np.testing.assert_allclose(np.exp(-3 * losses).sum(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(
        losses.argmin(), [*map(list, itertools.permutations(range(4)))].index([1, 0, 3, 2])
    )


def test_both_match_a_loop():
    rewards, scores, valid = sample()
    loss, metrics = plackett_luce_loss(rewards, scores, valid)
    assert metrics["ties"] > 0
    np.testing.assert_allclose(loss, looped(rewards, scores, valid, choices), rtol=1e-5)
    loss, _ = best_of_n_loss(rewards, scores, valid)
    np.testing.assert_allclose(loss, looped(rewards, scores, valid, best), rtol=1e-5)


def test_ties_by_hand():
    rewards, scores = jnp.array([[2.0, 0.0, 1.0]]), jnp.array([[5, 5, 1]])
    # Both are chosen before the last, neither before the other.
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1))) / 2
    np.testing.assert_allclose(plackett_luce_loss(rewards, scores, jnp.ones((1, 3)))[0], expected, rtol=1e-6)
    expected = math.log((math.exp(2) + 1 + math.exp(1)) / (math.exp(2) + 1))
    np.testing.assert_allclose(best_of_n_loss(rewards, scores, jnp.ones((1, 3)))[0], expected, rtol=1e-6)
    last = jnp.array([[5, 1, 1]])
    among = math.log(1 + math.exp(-2) + math.exp(-1))
    np.testing.assert_allclose(plackett_luce_loss(rewards, last, jnp.ones((1, 3)))[0], among, rtol=1e-6)


@every_loss
def test_pairs_are_the_case_of_two_completions(loss):
    chosen, rejected = jnp.asarray(np.random.default_rng(2).normal(size=(2, 7)), jnp.float32)
    both, scores = jnp.stack([rejected, chosen], 1), jnp.tile(jnp.array([1.0, 3.0]), (7, 1))
    value, metrics = loss(both, scores, jnp.ones((7, 2)))
    expected, of_pairs = pairwise_loss(chosen, rejected)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for name in of_pairs:
        np.testing.assert_allclose(metrics[name], of_pairs[name], rtol=1e-6)


@every_loss
def test_a_group_of_ties_or_of_one_has_no_weight(loss):
    rewards = jnp.array([[1.0, 0.0], [5.0, -5.0], [9.0, 3.0]])
    scores, valid = jnp.array([[1, 0], [2, 2], [1, 0]]), jnp.array([[1, 1], [1, 1], [1, 0]])
    np.testing.assert_allclose(loss(rewards, scores, valid)[0], math.log1p(math.exp(-1)), rtol=1e-6)
    nothing = jax.value_and_grad(lambda r: loss(r, scores, 0 * valid)[0])(rewards)
    assert nothing[0] == 0
    np.testing.assert_array_equal(nothing[1], jnp.zeros_like(rewards))


@every_loss
def test_order_padding_and_a_constant_do_not_matter(loss):
    rewards, scores, valid = sample()
    expected, metrics = loss(rewards, scores, valid)
    order = np.random.default_rng(1).permutation(5)
    shuffled = loss(*(x[:, order] for x in (rewards, scores, valid)))
    padded = loss(
        jnp.pad(rewards, ((0, 0), (3, 2)), constant_values=jnp.nan),
        jnp.pad(scores, ((0, 0), (3, 2)), constant_values=jnp.inf),
        jnp.pad(valid, ((0, 0), (3, 2))),
    )
    for other in (shuffled, padded):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), other, (expected, metrics))
    np.testing.assert_allclose(loss(rewards + 7, scores, valid)[0], expected, rtol=1e-5)


@every_loss
def test_poison_in_the_padding_leaves_no_trace_in_the_gradient(loss):
    rewards, scores, valid = sample()
    gradient = jax.grad(lambda r: loss(r, scores, valid)[0])
    poisoned = jnp.where(valid, rewards, jnp.nan)
    assert jnp.isnan(poisoned).any() and jnp.isfinite(gradient(rewards)).all()
    np.testing.assert_array_equal(gradient(poisoned), gradient(rewards))


@every_loss
def test_micro_batches_add_up_under_the_count_of_groups(loss):
    rewards, scores, valid = sample()
    scores = scores.at[0].set(1)
    whole, metrics = loss(rewards, scores, valid)
    parts = [
        loss(*arrays, denominator=metrics["groups"])[0]
        for arrays in zip(*(jnp.split(x, 3) for x in (rewards, scores, valid)), strict=True)
    ]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-6)


@every_loss
def test_large_rewards_do_not_overflow_and_integers_are_refused(loss):
    rewards, scores = jnp.array([[-1e4, 0.0, 1e4]]), jnp.array([[3, 2, 1]])
    value, gradient = jax.value_and_grad(lambda r: loss(r, scores, jnp.ones((1, 3)))[0])(rewards)
    assert jnp.isfinite(value) and value >= 1e4 and jnp.isfinite(gradient).all()
    with pytest.raises(TypeError, match="rewards have dtype int32"):
        loss(jnp.array([[1, 0]]), jnp.array([[1, 0]]), jnp.array([[1, 1]]))
