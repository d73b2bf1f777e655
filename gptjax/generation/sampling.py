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


def check_whole(sampling: SamplingConfig, where: str) -> None:
    """Refuses a sampling of less than the whole distribution, which is what log-probabilities are of.

    Raises:
        ValueError: naming `where`.
    """
    if sampling.top_k or sampling.top_p < 1 or sampling.temperature == 0:
        raise ValueError(f"sampling must have top_k 0, top_p 1 and a temperature above 0 in {where}")


def shortlist(logits_BxV: jax.Array, top_k: int) -> tuple[jax.Array, jax.Array]:
    """The `top_k` largest logits of each row and their token ids: float32 and int32 `[B, top_k]`."""
    # Without the barrier XLA fuses what reads the result into the search, and sorts the whole vocabulary.
    return jax.lax.optimization_barrier(jax.lax.top_k(logits_BxV, top_k))


def nucleus(logits_BxV: jax.Array, top_p: float) -> jax.Array:
    """Sets the logits outside the nucleus to -inf; at least the most likely token stays in every row.

    Tokens as likely as its last one stay as well.

    Args:
        logits_BxV: float32 `[B, V]`, temperature already applied.
        top_p: see `SamplingConfig`.
    """
    descending = jnp.sort(logits_BxV, axis=-1)[:, ::-1]
    probabilities = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = jnp.where(before < top_p, descending, jnp.inf)
    return jnp.where(logits_BxV < kept.min(-1, keepdims=True), -jnp.inf, logits_BxV)


def sample(logits_BxV: jax.Array, keys_B: jax.Array, sampling: SamplingConfig) -> jax.Array:
    """One token per row, each row with its own key: int32 `[B]`.

    A row's draw depends on its logits and its key alone, not on what else is in the batch.
    """
    if sampling.temperature == 0.0:
        return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    logits, ids = logits_BxV / sampling.temperature, None
    if 0 < sampling.top_k < logits.shape[-1]:
        logits, ids = shortlist(logits, sampling.top_k)
    if sampling.top_p < 1.0:
        logits = nucleus(logits, sampling.top_p)
    drawn_B = jax.vmap(jax.random.categorical)(keys_B, logits).astype(jnp.int32)
    return drawn_B if ids is None else jnp.take_along_axis(ids, drawn_B[:, None], axis=1)[:, 0]
