"""From logits to the next token: temperature, top-k, top-p.

Legend: B batch, V vocabulary.
"""

import jax
import jax.numpy as jnp

from gptjax.config import configclass
from gptjax.ranges import AboveZero, Count, Natural, NonNegative


@configclass
class SamplingConfig:
    """How the next token is drawn; the order is temperature, top-k, top-p (GPT-2's released sampler).

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: how many of the most likely tokens stay; 0 keeps all.
        top_p: the smallest set of most likely tokens whose mass reaches this stays (Holtzman et al. 2020).
        max_new_tokens: T, longest reply.
    """

    temperature: NonNegative = 1.0
    top_k: Natural = 0
    top_p: AboveZero = 1.0
    max_new_tokens: Count = 64


def filter_logits(logits_BxV: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """Sets the logits outside the top-k and the nucleus to -inf.

    Args:
        logits_BxV: float32 `[B, V]`, temperature already applied.
        top_k, top_p: see `SamplingConfig`.

    Returns:
        float32 `[B, V]`; at least the most likely token stays in every row.
    """
    if top_k and top_k < logits_BxV.shape[-1]:
        threshold = jax.lax.top_k(logits_BxV, top_k)[0][:, -1:]
        logits_BxV = jnp.where(logits_BxV < threshold, -jnp.inf, logits_BxV)
    if top_p < 1.0:
        descending = jnp.sort(logits_BxV, axis=-1)[:, ::-1]
        before = jnp.cumsum(jax.nn.softmax(descending, axis=-1), axis=-1) - jax.nn.softmax(
            descending, axis=-1
        )
        kept = jnp.where(before < top_p, descending, jnp.inf)
        logits_BxV = jnp.where(logits_BxV < kept.min(-1, keepdims=True), -jnp.inf, logits_BxV)
    return logits_BxV


def sample(logits_BxV: jax.Array, keys_B: jax.Array, sampling: SamplingConfig) -> jax.Array:
    """One token per row, each row with its own key: int32 `[B]`.

    A row's draw depends on its logits and its key alone, not on what else is in the batch.
    """
    if sampling.temperature == 0.0:
        return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    logits_BxV = filter_logits(logits_BxV / sampling.temperature, sampling.top_k, sampling.top_p)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BxV).astype(jnp.int32)
