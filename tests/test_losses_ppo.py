import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.losses.ppo import (
    approx_kl,
    clip_fraction,
    explained_variance,
    kl_loss,
    policy_loss,
    ratio_variance,
    value_loss,
)
from gptjax.losses.rewards import exact_kl

CLIP = 0.2

# One compilation a function instead of one an operation.
policy_loss, value_loss = jax.jit(policy_loss), jax.jit(value_loss)
explained_variance = jax.jit(explained_variance)


@jax.jit
def kl_k3(log_probs, ref_log_probs, mask, *, clip, denominator=None):
    """k3 as a loss, called as the other two."""
    return kl_loss(log_probs, ref_log_probs, mask, estimator="k3", denominator=denominator)


def sample(batch=8, time=6):
    rng = np.random.default_rng(0)
    old, values, returns, advantages = jnp.asarray(rng.normal(size=(4, batch, time)), jnp.float32)
    log_probs = old + jnp.asarray(rng.normal(0, 0.3, (batch, time)), jnp.float32)
    old_values = values + jnp.asarray(rng.normal(0, 0.3, (batch, time)), jnp.float32)
    lengths = np.array([6, 1, 4, 2, 5, 3, 6, 1])[:batch]
    mask = jnp.asarray(np.arange(time) < lengths[:, None], jnp.float32)
    return log_probs, old, advantages, values, old_values, returns, mask


def policy_arguments():
    log_probs, old, advantages, _, _, _, mask = sample()
    return log_probs, old, advantages, mask


def value_arguments():
    _, _, _, values, old_values, returns, mask = sample()
    return values, old_values, returns, mask


def kl_arguments():
    log_probs, _, reference, _, _, _, mask = sample()
    return log_probs, reference, mask


LOSSES = [(policy_loss, policy_arguments), (value_loss, value_arguments), (kl_k3, kl_arguments)]


def test_the_four_corners_of_the_clipped_surrogate_by_hand():
    ratio = jnp.array([[1.5, 0.5, 1.5, 0.5]])
    advantages = jnp.array([[1.0, 1.0, -1.0, -1.0]])

    def loss(log_probs):
        return policy_loss(log_probs, jnp.zeros((1, 4)), advantages, jnp.ones((1, 4)), clip=CLIP)

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.log(ratio))
    # A gain is capped at 1.2 and a loss floored at 0.8; both others pay in full.
    np.testing.assert_allclose(value, -(1.2 + 0.5 - 1.5 - 0.8) / 4, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0, -0.5 / 4, 1.5 / 4, 0]], rtol=1e-6, atol=1e-8)
    assert metrics["policy/clipfrac_avg"] == 0.5
    np.testing.assert_allclose(metrics["val/ratio"], 1.0, rtol=1e-6)
    np.testing.assert_allclose(metrics["val/ratio_spread"], 0.25, rtol=1e-6)
    np.testing.assert_allclose(
        metrics["policy/approxkl_avg"], (math.log(1.5) ** 2 + math.log(0.5) ** 2) / 4, rtol=1e-6
    )


def test_the_first_pass_is_the_policy_gradient_with_ratio_exactly_one():
    log_probs, _, advantages, mask = policy_arguments()

    def loss(log_probs, old):
        return policy_loss(log_probs, old, advantages, mask, clip=CLIP)

    (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(log_probs, log_probs)
    assert metrics["val/ratio"] == 1
    for name in ("policy/approxkl_avg", "policy/clipfrac_avg", "val/ratio_spread"):
        assert metrics[name] == 0
    np.testing.assert_allclose(gradient, -advantages * mask / mask.sum(), rtol=1e-6, atol=1e-8)


def test_policy_loss_matches_numpy():
    log_probs, old, advantages, mask = (np.asarray(x, np.float64) for x in policy_arguments())
    loss, metrics = policy_loss(*policy_arguments(), clip=CLIP)
    ratio, kept = np.exp(log_probs - old), mask > 0
    plain, clipped = -advantages * ratio, -advantages * np.clip(ratio, 1 - CLIP, 1 + CLIP)
    np.testing.assert_allclose(loss, np.maximum(plain, clipped)[kept].mean(), rtol=1e-5)
    expected = {
        "loss/policy_avg": np.maximum(plain, clipped)[kept].mean(),
        "policy/approxkl_avg": 0.5 * ((log_probs - old) ** 2)[kept].mean(),
        "policy/clipfrac_avg": (clipped > plain)[kept].mean(),
        "val/ratio": ratio[kept].mean(),
        "val/ratio_spread": ((ratio - 1) ** 2)[kept].mean(),
    }
    assert 0 < expected["policy/clipfrac_avg"] < 1
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    variance = ratio_variance(metrics["val/ratio"], metrics["val/ratio_spread"])
    np.testing.assert_allclose(variance, ratio[kept].var(), rtol=1e-4)


def test_value_loss_matches_numpy():
    values, old_values, returns, mask = (np.asarray(x, np.float64) for x in value_arguments())
    loss, metrics = value_loss(*value_arguments(), clip=CLIP)
    clipped = old_values + np.clip(values - old_values, -CLIP, CLIP)
    error, clipped_error = (values - returns) ** 2, (clipped - returns) ** 2
    np.testing.assert_allclose(loss, 0.5 * np.maximum(error, clipped_error)[mask > 0].mean(), rtol=1e-5)
    fraction = (clipped_error > error)[mask > 0].mean()
    assert 0 < fraction < 1
    np.testing.assert_allclose(metrics["val/clipfrac_avg"], fraction, rtol=1e-6)
    assert metrics["loss/value_avg"] == loss


def test_value_loss_by_hand():
    # From 0 towards 1 with a clip of 0.5: the error is measured at 0.5 and the gradient is gone.
    one = jnp.ones((1, 1))
    loss, gradient = jax.value_and_grad(lambda v: value_loss(v, 0 * one, one, one, clip=0.5)[0])(0.9 * one)
    np.testing.assert_allclose(loss, 0.125, rtol=1e-6)
    assert gradient == 0
    # Away from the target the full error counts.
    loss, gradient = jax.value_and_grad(lambda v: value_loss(v, 0 * one, one, one, clip=0.5)[0])(-one)
    assert (loss, gradient) == (2, -2)


@pytest.mark.parametrize(("loss", "arguments"), LOSSES)
def test_only_the_trained_array_has_a_gradient(loss, arguments):
    given = arguments()
    gradients = jax.grad(lambda *x: loss(*x, clip=CLIP)[0], tuple(range(len(given) - 1)))(*given)
    assert jnp.abs(gradients[0]).max() > 0
    for constant in gradients[1:]:
        np.testing.assert_array_equal(constant, jnp.zeros_like(constant))


@pytest.mark.parametrize(("loss", "arguments"), LOSSES)
def test_gradients_against_finite_differences_in_float64(loss, arguments):
    with jax.enable_x64(True):
        trained, *rest = (jnp.asarray(np.asarray(x, np.float64)) for x in arguments())
        direction = jnp.asarray(np.random.default_rng(5).normal(size=trained.shape))

        def scalar(trained):
            return loss(trained, *rest, clip=CLIP)[0]

        ahead, behind = scalar(trained + 1e-6 * direction), scalar(trained - 1e-6 * direction)
        slope = jnp.vdot(jax.grad(scalar)(trained), direction)
        # Rounding 1e-16 over a step of 1e-6 leaves 1e-10; no kink lies within the step for this sample.
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize(("loss", "arguments"), LOSSES)
def test_micro_batches_with_different_token_counts_add_up(loss, arguments, parts):
    mask = arguments()[-1]

    def step(denominator, trained, *rest):
        def scalar(trained):
            return loss(trained, *rest, clip=CLIP, denominator=denominator)

        return jax.value_and_grad(scalar, has_aux=True)(trained)

    whole, whole_gradient = step(None, *arguments())
    pieces = list(zip(*(jnp.split(x, parts) for x in arguments()), strict=True))
    results = [step(mask.sum(), *piece) for piece in pieces]
    total = jax.tree.map(lambda *x: sum(x), *[value for value, _ in results])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), total, whole)
    gradient = jnp.concatenate([gradient for _, gradient in results])
    np.testing.assert_allclose(gradient, whole_gradient, rtol=1e-5, atol=1e-8)
    means = sum(loss(*piece, clip=CLIP)[0] for piece in pieces) / parts
    assert abs(means - whole[0]) > 1e-3, "the sample must tell a mean of means from the mean"


@pytest.mark.parametrize(("loss", "arguments"), LOSSES)
def test_padding_and_what_it_holds_do_not_matter(loss, arguments):
    expected = jax.value_and_grad(loss, has_aux=True)(*arguments(), clip=CLIP)
    *arrays, mask = arguments()
    for poison in (jnp.nan, jnp.inf, -1e30):
        for side in ((0, 3), (3, 0)):
            width = ((0, 0), side)
            padded = [jnp.pad(jnp.where(mask == 0, poison, x), width, constant_values=poison) for x in arrays]
            value, gradient = jax.value_and_grad(loss, has_aux=True)(*padded, jnp.pad(mask, width), clip=CLIP)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), value, expected[0])
            np.testing.assert_allclose(gradient, jnp.pad(expected[1], width), rtol=1e-6)


@pytest.mark.parametrize(("loss", "arguments"), LOSSES)
def test_no_token_gives_zero(loss, arguments):
    *arrays, mask = arguments()
    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(*arrays, 0 * mask, clip=CLIP)
    assert value == 0 and not any(metrics.values())
    np.testing.assert_array_equal(gradient, jnp.zeros_like(gradient))


@pytest.mark.parametrize(("loss", "arguments"), LOSSES)
def test_low_precision_arrays_give_float32_losses(loss, arguments):
    value, metrics = loss(*(x.astype(jnp.bfloat16) for x in arguments()), clip=CLIP)
    assert {x.dtype for x in jax.tree.leaves((value, metrics))} == {jnp.dtype("float32")}


def test_k2_has_the_gradient_of_the_divergence_and_k3_that_of_the_other():
    """Over a whole vocabulary, each token weighed with the probability that the policy draws it."""
    logits, reference = jnp.asarray(np.random.default_rng(3).normal(size=(2, 7)), jnp.float32)
    drawn, ref_log_probs = jax.nn.softmax(logits), jax.nn.log_softmax(reference)

    def loss(logits, estimator):
        given = jax.nn.log_softmax(logits), ref_log_probs, drawn
        return kl_loss(*given, estimator=estimator, denominator=1.0)[0]

    divergences = {"k2": exact_kl, "k3": lambda ours, theirs: exact_kl(theirs, ours)}
    found = {kind: jax.grad(loss)(logits, kind) for kind in divergences}
    for kind, divergence in divergences.items():
        np.testing.assert_allclose(found[kind], jax.grad(divergence)(logits, reference), atol=1e-6)
    assert jnp.abs(found["k2"] - found["k3"]).max() > 0.05
    with pytest.raises(ValueError, match="estimator 'k1' gives no gradient on average; choose k2 or k3"):
        loss(logits, "k1")


def test_ratio_variance_survives_ratios_close_to_one():
    log_ratio = jnp.asarray(np.random.default_rng(1).normal(0, 1e-4, (64, 64)), jnp.float32)
    _, metrics = policy_loss(log_ratio, 0 * log_ratio, log_ratio, jnp.ones((64, 64)), clip=CLIP)
    expected = np.exp(np.asarray(log_ratio, np.float64)).var()
    variance = ratio_variance(metrics["val/ratio"], metrics["val/ratio_spread"])
    # A ratio next to 1 is rounded to 6e-8, a thousandth of its spread.
    np.testing.assert_allclose(variance, expected, rtol=2e-3)


def test_diagnostics_by_hand():
    mask = jnp.array([1, 1, 0])
    np.testing.assert_allclose(
        approx_kl(jnp.array([1.0, 0.0, 9.0]), jnp.array([0.0, 2.0, 0.0]), mask), (0.5 + 2) / 2, rtol=1e-6
    )
    ratio, advantages = jnp.array([1.5, 1.5, 1.5]), jnp.array([1.0, -1.0, 1.0])
    assert clip_fraction(ratio, advantages, mask, clip=CLIP) == 0.5
    assert clip_fraction(ratio, advantages, mask, clip=CLIP, denominator=4) == 0.25


def test_explained_variance_of_known_critics():
    returns, mask = jnp.array([[1.0, 2.0, 3.0, 50.0]]), jnp.array([[1, 1, 1, 0]])
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(returns + 5, returns, mask) == 1
    assert explained_variance(jnp.zeros((1, 4)), returns, mask) == 0
    np.testing.assert_allclose(explained_variance(-returns, returns, mask), -3, rtol=1e-6)
    assert explained_variance(returns, jnp.full((1, 4), 0.1), mask) == 0
    assert explained_variance(jnp.full((1, 4), jnp.nan).at[0, :3].set(2.0), returns, mask) == 0
