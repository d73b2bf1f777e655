"""Odds of completions, from log-probabilities, without losing digits at either end."""

import jax
import jax.numpy as jnp

from gptjax.losses.masked import as_float


def log_odds(mean_log_probs: jax.Array) -> jax.Array:
    """Log-odds of a completion, whose probability is the geometric mean over its tokens: ``log p / (1 - p)``.

    Args:
        mean_log_probs: any shape, floating, below 0; 0 itself, a certain completion, has infinite odds.

    Returns:
        float32, nats.

    Source: Hong et al. 2024 (ORPO, arXiv 2403.07691), equations 3 and 4.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(log_odds(jnp.log(0.75))), 4)
        1.0986
    """
    log_p = as_float(mean_log_probs)
    # Near 0 the exponential is near 1, where its difference to 1 has lost its digits; far from 0 the
    # logarithm's argument is. The branch not taken gets an argument at which its slope is finite.
    near = log_p > -jnp.log(2.0)
    by_expm1 = jnp.log(-jnp.expm1(jnp.where(near, log_p, -1.0)))
    by_log1p = jnp.log1p(-jnp.exp(jnp.where(near, -1.0, log_p)))
    return log_p - jnp.where(near, by_expm1, by_log1p)
