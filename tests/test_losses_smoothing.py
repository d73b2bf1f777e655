"""Label smoothing against the smoothed distribution written out, in both conventions, whole and by chunks."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.losses import smoothing
from gptjax.losses.lm import cross_entropy, linear_cross_entropy

B, L, D, V = 2, 5, 4, 11
RNG = np.random.default_rng(0)
HIDDEN, MATRIX = RNG.normal(size=(B, L, D)).astype(np.float32), RNG.normal(size=(D, V)).astype(np.float32)
TARGETS = RNG.integers(0, V, (B, L))
MASK = np.array([[1, 1, 0, 1, 1], [1, 0, 0, 1, 0]], np.float32)


def smoothed(epsilon, over):
    """The target distribution `[B, L, V]`, by its definition."""
    one_hot = np.eye(V)[TARGETS]
    if over == "all":
        return (1 - epsilon) * one_hot + epsilon / V
    return (1 - epsilon) * one_hot + epsilon / (V - 1) * (1 - one_hot)


def numpy_loss(distribution):
    """(mean over the mask of -sum q log p, its gradient by the logits)."""
    logits = HIDDEN.astype(np.float64) @ MATRIX
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    gradient = MASK[..., None] * (np.exp(log_p) - distribution) / MASK.sum()
    return -(MASK[..., None] * distribution * log_p).sum() / MASK.sum(), gradient


@pytest.mark.parametrize("over", ["all", "others"])
@pytest.mark.parametrize("form", ["whole", "chunks", "transposed"])
def test_loss_and_gradient_are_those_of_the_smoothed_distribution(over, form):
    settings = {"label_smoothing": 0.1, "smooth_over": over}

    def loss(hidden, matrix):
        if form == "whole":
            return cross_entropy(hidden @ matrix, TARGETS, MASK, **settings)
        matrix = matrix.T if form == "transposed" else matrix
        chunks = {"chunk_size": 4, "transposed": form == "transposed"}
        return linear_cross_entropy(hidden, matrix, TARGETS, MASK, **settings, **chunks)

    (value, metrics), (d_hidden, d_matrix) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(
        HIDDEN, MATRIX
    )
    expected, d_logits = numpy_loss(smoothed(0.1, over))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(d_hidden, d_logits @ MATRIX.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_matrix, np.einsum("bld,blv->dv", HIDDEN, d_logits), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], numpy_loss(smoothed(0, over))[0], rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"] + metrics["smoothing"], value, rtol=1e-6)


def test_the_two_conventions_differ_by_where_the_mass_goes():
    for over in ("all", "others"):
        mass = smoothing.smoothing_mass(0.1, V, over)
        distribution = smoothed(0.1, over)
        np.testing.assert_allclose(
            np.unique(distribution.round(9)), [round(mass, 9), round(1 - 10 * mass, 9)]
        )
        np.testing.assert_allclose(distribution.sum(-1), 1)
    assert smoothing.smoothing_mass(0.1, V, "others") == 0.01


def test_the_loss_is_least_at_the_smoothed_distribution():
    """There it is the distribution's entropy, which tensor2tensor subtracts."""
    q = smoothed(0.1, "others")
    logits = jnp.asarray(np.log(q), jnp.float32)
    loss, gradient = jax.value_and_grad(
        lambda x: cross_entropy(x, TARGETS, MASK, label_smoothing=0.1, smooth_over="others")[0]
    )(logits)
    np.testing.assert_allclose(gradient, 0, atol=1e-7)
    np.testing.assert_allclose(loss, -0.9 * np.log(0.9) - 0.1 * np.log(0.01), rtol=1e-6)


def test_without_smoothing_nothing_changes():
    plain, metrics = cross_entropy(HIDDEN @ MATRIX, TARGETS, MASK)
    zero, same = cross_entropy(HIDDEN @ MATRIX, TARGETS, MASK, label_smoothing=0.0, smooth_over="others")
    assert plain == zero and metrics == same and "smoothing" not in metrics


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ({"label_smoothing": 0.1, "smooth_over": "rest"}, "smooth_over is 'rest'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        cross_entropy(HIDDEN @ MATRIX, TARGETS, MASK, **settings)
    with pytest.raises(ValueError, match=sentence):
        linear_cross_entropy(HIDDEN, MATRIX, TARGETS, MASK, **settings)


def test_the_examples_of_the_docstrings_run():
    assert doctest.testmod(smoothing).failed == 0
