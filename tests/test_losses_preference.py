import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.losses.preference import (
    dpo_loss,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    log_odds,
    orpo_loss,
)

# One compilation a function instead of one an operation.
dpo_loss = jax.jit(dpo_loss, static_argnames="label_smoothing")
ipo_loss, kto_loss, orpo_loss = jax.jit(ipo_loss), jax.jit(kto_loss), jax.jit(orpo_loss)

# Policy and reference, of the chosen and of the rejected completion: log-ratios +1 and -0.5.
PAIR = tuple(jnp.array([x]) for x in (-2.0, -4.0, -3.0, -3.5))
TOKENS = (jnp.array([4, 1, 3, 2, 5]), jnp.array([2, 6, 3, 4, 1]))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def sample(shape=(5,)):
    """Four arrays of log-probabilities of completions of one to six tokens."""
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(-rng.gamma(4.0, 1.0, shape), jnp.float32) for _ in range(4))


@jax.jit
def every_loss(pair, weights=None, denominator=None, tokens=TOKENS):
    """name -> (loss, metrics) of all four on the same pairs."""
    chosen_tokens, rejected_tokens = tokens
    counts = {"chosen_tokens": chosen_tokens, "rejected_tokens": rejected_tokens}
    given = {"beta": 0.3, "weights": weights, "denominator": denominator}
    policy, reference = jnp.stack([pair[0], pair[1]]), jnp.stack([pair[2], pair[3]])
    labels = jnp.array([True, False]).reshape(2, *[1] * pair[0].ndim)
    return {
        "dpo": dpo_loss(*pair, label_smoothing=0.1, **given),
        "ipo": ipo_loss(*pair, **counts, **given),
        "kto": kto_loss(policy, reference, labels, 0.2, desirable_weight=1.3, **given),
        "orpo": orpo_loss(*pair[:2], *tokens, **given),
    }


def test_dpo_by_hand():
    loss, metrics = dpo_loss(*PAIR, beta=0.5)
    np.testing.assert_allclose(loss, -math.log(sigmoid(0.5 * 1.5)), rtol=1e-6)
    assert {name: float(value) for name, value in metrics.items() if name != "loss"} == {
        "rewards/chosen": 0.5,
        "rewards/rejected": -0.25,
        "rewards/accuracies": 1.0,
        "rewards/margins": 0.75,
    }
    smoothed, _ = dpo_loss(*PAIR, beta=0.5, label_smoothing=0.2)
    expected = -0.8 * math.log(sigmoid(0.75)) - 0.2 * math.log(sigmoid(-0.75))
    np.testing.assert_allclose(smoothed, expected, rtol=1e-6)


def test_dpo_of_the_reference_itself_is_a_coin():
    chosen, rejected = sample()[:2]
    loss, metrics = dpo_loss(chosen, rejected, chosen, rejected, beta=0.1)
    np.testing.assert_allclose(loss, math.log(2), rtol=1e-6)
    assert metrics["rewards/margins"] == 0 and metrics["rewards/accuracies"] == 0


def test_dpo_gradient_is_weighted_by_how_wrong_the_reward_is():
    gradient = jax.grad(lambda c, r: dpo_loss(c, r, *PAIR[2:], beta=0.5)[0], (0, 1))(*PAIR[:2])
    # Rafailov et al. 2023, section 4: beta sigmoid(r_l - r_w) on both completions.
    np.testing.assert_allclose(gradient, [[-0.5 * sigmoid(-0.75)], [0.5 * sigmoid(-0.75)]], rtol=1e-6)


def test_label_smoothing_lets_dpo_stop():
    def at(margin):
        return jax.grad(lambda m: dpo_loss(m, 0 * m, 0 * m, 0 * m, beta=1.0, label_smoothing=0.1)[0])(margin)

    # The gradient is 0 where sigmoid(margin) is the probability that the label is right.
    np.testing.assert_allclose(at(jnp.array([math.log(9)])), 0, atol=1e-6)
    assert at(jnp.array([5.0])) > 0 > at(jnp.array([1.0]))
    for wrong in (-0.1, 0.5):
        with pytest.raises(ValueError, match=f"label_smoothing is {wrong}"):
            dpo_loss(*PAIR, beta=1.0, label_smoothing=wrong)


def test_ipo_by_hand():
    loss, metrics = ipo_loss(*PAIR, beta=0.5)
    np.testing.assert_allclose(loss, (1.5 - 1) ** 2, rtol=1e-6)
    assert metrics["rewards/margins"] == 0.75
    per_token, _ = ipo_loss(*PAIR, beta=0.5, chosen_tokens=jnp.array([2]), rejected_tokens=jnp.array([5]))
    np.testing.assert_allclose(per_token, (0.5 + 0.1 - 1) ** 2, rtol=1e-6)


def test_ipo_pulls_a_margin_that_is_too_large_back():
    gradient = jax.grad(lambda c: ipo_loss(c, *PAIR[1:], beta=1.0)[0])(PAIR[0])
    np.testing.assert_allclose(gradient, [2 * (1.5 - 0.5)], rtol=1e-6)


def test_kto_by_hand():
    policy, reference = jnp.array([-2.0, -4.0]), jnp.array([-3.0, -3.5])
    labels = jnp.array([True, False])
    loss, metrics = kto_loss(policy, reference, labels, 0.25, beta=2.0, undesirable_weight=3.0)
    good, bad = 1 - sigmoid(2 * (1 - 0.25)), 1 - sigmoid(-2 * (-0.5 - 0.25))
    np.testing.assert_allclose(loss, (good + 3 * bad) / 2, rtol=1e-6)
    assert metrics["rewards/accuracies"] == 1 and metrics["rewards/margins"] == 1.5
    assert kto_loss(policy, reference, ~labels, 0.25, beta=2.0)[1]["rewards/accuracies"] == 0


def test_kto_keeps_what_is_left_of_a_completion_far_on_its_side():
    loss, gradient = jax.value_and_grad(
        lambda p: kto_loss(p, jnp.zeros(1), jnp.array([True]), 0.0, beta=1.0)[0]
    )(jnp.array([40.0]))
    np.testing.assert_allclose(loss, math.exp(-40), rtol=1e-5)  # as 1 - sigmoid it would be 0
    np.testing.assert_allclose(gradient, [-math.exp(-40)], rtol=1e-5)


def test_the_reference_point_is_no_less_than_0_and_a_constant():
    policy, reference = jnp.array([-3.0, -2.0, -9.0]), jnp.array([-4.0, -2.0, 0.0])
    assert kto_reference_point(policy, reference) == 0
    weights = jnp.array([1.0, 3.0, 0.0])
    point, gradient = jax.value_and_grad(lambda p: kto_reference_point(p, reference, weights))(policy)
    assert point == 0.25 and not gradient.any()


def test_orpo_by_hand():
    chosen, rejected = 2 * jnp.log(jnp.array([0.6])), 3 * jnp.log(jnp.array([0.2]))
    loss, metrics = orpo_loss(chosen, rejected, jnp.array([2]), jnp.array([3]), beta=0.4)
    odds_ratio = (0.6 / 0.4) / (0.2 / 0.8)  # 6
    np.testing.assert_allclose(metrics["nll"], -math.log(0.6), rtol=1e-6)
    np.testing.assert_allclose(metrics["odds_ratio"], 0.4 * math.log(1 + 1 / odds_ratio), rtol=1e-5)
    np.testing.assert_allclose(loss, metrics["nll"] + metrics["odds_ratio"], rtol=1e-6)


def test_log_odds_and_their_slope_at_every_size():
    log_p = jnp.array([-1e-6, -1e-3, -0.5, -math.log(2), -0.7, -5.0, -80.0])
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(log_odds)))(log_p)
    exact = np.asarray(log_p, np.float64)
    np.testing.assert_allclose(value, exact - np.log(-np.expm1(exact)), rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(slope, -1 / np.expm1(exact), rtol=1e-5)


def numpy_twins(pair, tokens):
    """The formulas of the papers, one pair at a time in float64: name -> losses [B]."""
    losses = {"dpo": [], "ipo": [], "kto": [], "orpo": []}
    for pc, pr, rc, rr, nc, nr in zip(*(np.asarray(x, np.float64) for x in pair + tokens), strict=True):
        h = (pc - rc) - (pr - rr)
        losses["dpo"].append(-0.9 * math.log(sigmoid(0.3 * h)) - 0.1 * math.log(sigmoid(-0.3 * h)))
        losses["ipo"].append(((pc - rc) / nc - (pr - rr) / nr - 1 / 0.6) ** 2)
        good, bad = sigmoid(0.3 * (pc - rc - 0.2)), sigmoid(0.3 * (0.2 - (pr - rr)))
        losses["kto"].append((1.3 * (1 - good) + (1 - bad)) / 2)
        p, q = math.exp(pc / nc), math.exp(pr / nr)
        ratio = (p / (1 - p)) / (q / (1 - q))
        losses["orpo"].append(-math.log(p) - 0.3 * math.log(sigmoid(math.log(ratio))))
    return losses


def test_every_loss_is_the_mean_of_the_formula():
    pair, weights = sample(), jnp.array([1.0, 0.0, 2.0, 0.5, 1.0])
    for name, losses in numpy_twins(pair, TOKENS).items():
        loss, metrics = every_loss(pair)[name]
        np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
        np.testing.assert_array_equal(metrics["loss"], loss)
        weighted, _ = every_loss(pair, weights)[name]
        np.testing.assert_allclose(weighted, np.average(losses, weights=weights), rtol=1e-5)


@pytest.mark.parametrize("name", ["dpo", "ipo", "kto", "orpo"])
def test_gradients_are_those_of_differences(name):
    pair = sample()

    def loss(chosen, rejected):
        return every_loss((chosen, rejected, *pair[2:]))[name][0]

    ours = jax.jit(jax.grad(loss, (0, 1)))(*pair[:2])
    step = 1e-6
    for which in range(2):
        for row in range(5):
            moved = [np.array([np.asarray(x, np.float64) for x in pair]) for _ in range(2)]
            moved[0][which, row] += step
            moved[1][which, row] -= step
            up, down = (np.mean(numpy_twins(tuple(m), TOKENS)[name]) for m in moved)
            np.testing.assert_allclose(ours[which][row], (up - down) / (2 * step), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["dpo", "ipo", "kto", "orpo"])
def test_the_reference_is_a_constant(name):
    pair = sample()
    gradient = jax.grad(lambda r: every_loss((*pair[:2], r, r))[name][0])(pair[2])
    np.testing.assert_array_equal(gradient, jnp.zeros(5))


@pytest.mark.parametrize("name", ["dpo", "ipo", "kto", "orpo"])
def test_parts_of_a_batch_add_up_and_so_do_their_metrics(name):
    pair, total = sample(), 10.0 if name == "kto" else 5.0
    whole = every_loss(pair)[name]
    parts = []
    for rows in (slice(0, 2), slice(2, 5)):
        part, tokens = tuple(x[rows] for x in pair), tuple(x[rows] for x in TOKENS)
        parts.append(every_loss(part, denominator=total, tokens=tokens)[name])
    added = jax.tree.map(jnp.add, *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), added, whole)


@pytest.mark.parametrize("name", ["dpo", "ipo", "kto", "orpo"])
def test_poison_under_weight_0_leaves_no_trace(name):
    pair = sample()
    weights = jnp.array([1.0, 1.0, 0.0, 1.0, 1.0])

    def loss(chosen):
        return every_loss((chosen, *pair[1:]), weights)[name][0]

    value_and_gradient = jax.jit(jax.value_and_grad(loss))
    clean = value_and_gradient(pair[0])
    for value in (0.0, jnp.nan, -jnp.inf):  # at 0 a completion is certain, and its odds are infinite
        poisoned = value_and_gradient(pair[0].at[2].set(value))
        jax.tree.map(np.testing.assert_array_equal, poisoned, clean)


def test_pairs_broadcast_from_ranked_completions():
    policy, reference = sample((2, 3))[:2]
    weights = jnp.triu(jnp.ones((3, 3)), 1)[None] * jnp.array([1.0, 0.5])[:, None, None]
    every = [x[:, :, None] if which == 0 else x[:, None, :] for x in (policy, reference) for which in (0, 1)]
    loss, metrics = dpo_loss(*every, beta=0.3, weights=weights)
    i, j = np.triu_indices(3, 1)
    flat = [x[:, index].ravel() for x in (policy, reference) for index in (i, j)]
    expected = dpo_loss(*flat, beta=0.3, weights=jnp.repeat(jnp.array([1.0, 0.5]), 3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), (loss, metrics), expected)


def test_log_probabilities_keep_their_fraction():
    ints = [jnp.array([-2])] * 4
    for loss in (dpo_loss, ipo_loss):
        with pytest.raises(TypeError, match="policy log-probabilities have dtype int32"):
            loss(*ints, beta=0.1)
    with pytest.raises(TypeError, match="reference log-probabilities have dtype int32"):
        kto_loss(PAIR[0], ints[0], jnp.array([True]), 0.0, beta=0.1)
    with pytest.raises(TypeError, match="policy log-probabilities have dtype int32"):
        orpo_loss(*ints[:2], jnp.array([1]), jnp.array([1]), beta=0.1)
    half = [x.astype(jnp.bfloat16) for x in PAIR]
    assert dpo_loss(*half, beta=0.5)[0].dtype == jnp.float32
