"""Cross-entropy and ranking losses, value and gradient, against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.losses.lm import cross_entropy, linear_cross_entropy, token_log_probs
from gptjax.losses.ranking import pairwise_loss

torch = pytest.importorskip("torch", reason="torch is not installed (pip install torch)")


def test_cross_entropy_whole_and_chunked():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(3, 7, 8)).astype(np.float32)
    unembedding = rng.normal(size=(8, 33)).astype(np.float32)
    targets, mask = rng.integers(0, 33, (3, 7)), rng.random((3, 7)) < 0.7
    x, w = (torch.tensor(a, requires_grad=True) for a in (hidden, unembedding))
    labels = torch.tensor(np.where(mask, targets, -100))
    loss = torch.nn.functional.cross_entropy((x @ w).reshape(-1, 33), labels.reshape(-1), ignore_index=-100)
    loss.backward()

    def whole(hidden, unembedding):
        return cross_entropy(hidden @ unembedding, jnp.asarray(labels.numpy()), mask)[0]

    def chunked(hidden, unembedding):
        return linear_cross_entropy(hidden, unembedding, jnp.asarray(labels.numpy()), mask, chunk_size=5)[0]

    for form in (whole, chunked):
        value, gradients = jax.jit(jax.value_and_grad(form, (0, 1)))(
            jnp.asarray(hidden), jnp.asarray(unembedding)
        )
        np.testing.assert_allclose(value, loss.item(), rtol=1e-6)
        for ours, theirs in zip(gradients, (x.grad, w.grad), strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-7)


def test_token_log_probs_at_a_temperature():
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(0, 5, (2, 4, 17)).astype(np.float32), rng.integers(0, 17, (2, 4))
    expected = torch.log_softmax(torch.tensor(logits) / 0.7, -1).gather(-1, torch.tensor(targets)[..., None])
    ours = token_log_probs(jnp.asarray(logits), jnp.asarray(targets), 0.7)
    np.testing.assert_allclose(ours, expected[..., 0].numpy(), rtol=1e-5, atol=1e-6)


def test_pairwise_loss_is_minus_logsigmoid():
    rng = np.random.default_rng(2)
    chosen, rejected, margin = rng.normal(0, 10, (3, 50)).astype(np.float32)
    c = torch.tensor(chosen, requires_grad=True)
    difference = c - torch.tensor(rejected) - torch.tensor(margin)
    expected = -torch.nn.functional.logsigmoid(difference).mean()
    expected.backward()
    value, gradient = jax.value_and_grad(lambda c: pairwise_loss(c, jnp.asarray(rejected), margin)[0])(
        jnp.asarray(chosen)
    )
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, c.grad.numpy(), rtol=1e-4, atol=1e-8)
