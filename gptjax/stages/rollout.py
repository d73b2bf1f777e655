"""Rollouts: replies drawn from the policy, and what policy, reference, critic and reward model say of them.

Legend: B prompts, P prompt slots, T response slots, L = P + T, V vocabulary.

Prompts are padded on the left and responses on the right. Nothing is decoded and encoded again: the ids
that were drawn are the ids that are scored. There are no sentinel values: what lies outside the mask is 0.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from gptjax.generation.decode import decode
from gptjax.generation.sampling import SamplingConfig
from gptjax.losses.lm import entropy, token_log_probs
from gptjax.losses.rewards import exact_kl
from gptjax.models.functional import ModelDefinition


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rollout:
    """Replies to a batch of prompts.

    Attributes:
        prompt: int32 `[B, P]`, padded on the left.
        prompt_mask: bool `[B, P]`.
        response: int32 `[B, T]`, padded on the right; the end-of-message token is part of it.
        mask: float32 `[B, T]`, 1 on the response's tokens.
        sampler_log_probs: float32 `[B, T]`, of the drawn tokens, from the cached decoder.
        ended: bool `[B]`, whether the end-of-message token came within T tokens.
    """

    prompt: jax.Array
    prompt_mask: jax.Array
    response: jax.Array
    mask: jax.Array
    sampler_log_probs: jax.Array
    ended: jax.Array


def draw(
    definition: ModelDefinition,
    params,
    prompt,
    prompt_mask,
    keys,
    sampling: SamplingConfig,
    end_id: int | None,
    pad_id: int,
) -> Rollout:
    """One reply per prompt, each with its own key; with None for `end_id` all of `max_new_tokens` tokens."""
    out = decode(
        definition,
        params,
        prompt,
        prompt_mask,
        keys,
        sampling=sampling,
        stop_sequences=() if end_id is None else ((end_id,),),
        pad_id=pad_id,
    )
    return Rollout(prompt, prompt_mask, out.tokens, out.mask, out.log_probs, out.stopped)


def sequences(rollout: Rollout) -> dict[str, jax.Array]:
    """Prompt and response as model inputs `[B, L]`: tokens, segment_ids (0 on padding), positions."""
    valid = jnp.concatenate([rollout.prompt_mask, rollout.mask > 0], axis=1)
    return {
        "tokens_BxL": jnp.concatenate([rollout.prompt, rollout.response], axis=1),
        "segment_ids": valid.astype(jnp.int32),
        "positions": jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0).astype(jnp.int32),
    }


def response_logits(definition: ModelDefinition, params, rollout: Rollout) -> jax.Array:
    """Teacher-forced logits of each response slot, `logits[:, P - 1 : L - 1]`: float32 `[B, T, V]`."""
    model = definition.bind(params)
    inputs = sequences(rollout)
    hidden_BxLxD = model.hidden(inputs.pop("tokens_BxL"), **inputs)
    return model.logits(hidden_BxLxD[:, rollout.prompt.shape[1] - 1 : -1])


def response_log_probs(
    definition: ModelDefinition, params, rollout: Rollout, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Teacher-forced log-probabilities of the response and the entropy at each of its positions.

    `log softmax(logits[:, P - 1 : L - 1] / temperature)[response]`: the logits at a position predict the
    next token. The temperature is the sampling one, for policy and reference alike.

    Returns:
        two float32 arrays `[B, T]`, 0 outside the mask.
    """
    logits_BxTxV = response_logits(definition, params, rollout)
    log_probs = token_log_probs(logits_BxTxV, rollout.response, temperature=temperature)
    inside = rollout.mask > 0
    return jnp.where(inside, log_probs, 0.0), jnp.where(inside, entropy(logits_BxTxV, temperature), 0.0)


def divergences(logits_BxTxV, ref_logits_BxTxV, rollout: Rollout, temperature: float) -> jax.Array:
    """`exact_kl` of two models' `response_logits`, summed over the slots of each response: float32 `[B]`."""
    kl_BxT = exact_kl(logits_BxTxV, ref_logits_BxTxV, temperature)
    return jnp.where(rollout.mask > 0, kl_BxT, 0.0).sum(1)


def exact_divergences(
    definition: ModelDefinition, params, reference, rollout: Rollout, temperature: float
) -> jax.Array:
    """`divergences` of policy and reference: float32 `[B]`."""
    logits = (response_logits(definition, p, rollout) for p in (params, reference))
    return divergences(*logits, rollout, temperature)


def cut_replies(rollout: Rollout, ids: tuple[int, ...], after: int) -> Rollout:
    """The replies up to their first token out of `ids` at or after slot `after`, that token included.

    `ended` says whether there is one; a reply without it stays whole. The tokens themselves stay: what lies
    outside the mask is not read.

    Source: Ziegler et al. 2019, code of lm-human-preferences, `postprocess_fn_from_hparams`.
    """
    slots = jnp.arange(rollout.response.shape[1])
    found = jnp.isin(rollout.response, jnp.asarray(ids)) & (slots >= after) & (rollout.mask > 0)
    before = jnp.cumsum(found, axis=1) - found
    return replace(rollout, mask=jnp.where(before > 0, 0.0, rollout.mask), ended=found.any(1))


def response_values(
    definition: ModelDefinition, params, rollout: Rollout, mask: jax.Array | None = None
) -> jax.Array:
    """The critic's value of the state before each response token: float32 `[B, T]`, 0 outside the mask.

    The mask is the rollout's, unless another is given.
    """
    mask = rollout.mask if mask is None else mask
    inputs = sequences(rollout)
    scalars_BxL = definition.apply(params, inputs.pop("tokens_BxL"), **inputs)
    values = scalars_BxL[:, rollout.prompt.shape[1] - 1 : -1]
    return jnp.where(mask > 0, values, 0.0)


def reward_scores(definition: ModelDefinition, params, rollout: Rollout) -> jax.Array:
    """The reward model's scalar at the last token of each reply: float32 `[B]`.

    An empty response is read at the prompt's last token.
    """
    inputs = sequences(rollout)
    scalars_BxL = definition.apply(params, inputs.pop("tokens_BxL"), **inputs)
    last = rollout.prompt.shape[1] - 1 + rollout.mask.sum(1).astype(jnp.int32)
    return jnp.take_along_axis(scalars_BxL, last[:, None], axis=1)[:, 0]
