"""The PPO formulas against DeepMind's rlax, an independent implementation in JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ppo_twin import Choices, credit

from gptjax.losses.ppo import policy_loss
from gptjax.losses.rewards import generalized_advantages

rlax = pytest.importorskip("rlax", reason="rlax is not installed (pip install rlax)")


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.5)])
def test_generalized_advantages(gamma, gae_lambda):
    rng = np.random.default_rng(0)
    rewards, values = jnp.asarray(rng.normal(size=(2, 4, 9)), jnp.float32)
    lengths = np.array([9, 1, 5, 3])
    mask = jnp.arange(9) < lengths[:, None]
    advantages, _ = generalized_advantages(rewards, values, mask, gamma=gamma, gae_lambda=gae_lambda)
    for row, n in enumerate(lengths):
        expected = rlax.truncated_generalized_advantage_estimation(
            rewards[row, :n], jnp.full(n, gamma), gae_lambda, jnp.append(values[row, :n], 0.0)
        )
        np.testing.assert_allclose(advantages[row, :n], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(advantages[row, n:], 0)


def test_the_twin_of_the_conventions():
    """Returns, which are the advantages before whitening plus values."""
    rng = np.random.default_rng(2)
    rows = [{"r": rng.normal(size=n), "v": rng.normal(size=n), "n": n} for n in (9, 1, 5)]
    _, returns = credit(Choices(gamma=0.9, lam=0.5), rows)
    for row, found in zip(rows, returns, strict=True):
        values = jnp.asarray(np.append(row["v"], 0.0))
        expected = rlax.truncated_generalized_advantage_estimation(
            jnp.asarray(row["r"]), jnp.full(row["n"], 0.9), 0.5, values
        )
        np.testing.assert_allclose(found, expected + row["v"], rtol=1e-5, atol=1e-6)


def test_clipped_surrogate_and_its_gradient():
    rng = np.random.default_rng(1)
    advantages = jnp.asarray(rng.normal(size=20), jnp.float32)
    log_ratio = jnp.asarray(rng.normal(0, 0.4, 20), jnp.float32)

    def ours(log_ratio):
        return policy_loss(log_ratio, jnp.zeros(20), advantages, jnp.ones(20), clip=0.2)[0]

    def theirs(log_ratio):
        return rlax.clipped_surrogate_pg_loss(jnp.exp(log_ratio), advantages, 0.2)

    for a, b in zip(jax.value_and_grad(ours)(log_ratio), jax.value_and_grad(theirs)(log_ratio), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
