"""Decoding with a key/value cache: prefill once, then one token per turn of a `lax.while_loop`.

Legend: B batch, P prompt slots, T new-token slots, S = P + T cache slots, V vocabulary.

Prompts of different lengths are padded on the left, so that every row writes its next key to the same slot.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.generation.sampling import SamplingConfig, sample
from gptjax.losses.lm import token_log_probs
from gptjax.models.functional import ModelDefinition, layer_parameters


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeState:
    """A batch of replies under way.

    Attributes:
        step: int32 scalar, new tokens so far.
        tokens: int32 `[B, T]`; the pad id after a reply's end.
        log_probs: float32 `[B, T]`, of each token under the model at the sampling temperature, before
            top-k and top-p; 0 after the end.
        mask: float32 `[B, T]`, 1 where a token was drawn, its stop token included.
        stopped: bool `[B]`, whether a stop sequence has come.
        logits: float32 `[B, V]` of the next token.
        caches: one `KVCache` a layer.
        prompt_mask: bool `[B, P]`.
        keys: `[B]` PRNG keys, one per request.
    """

    step: jax.Array
    tokens: jax.Array
    log_probs: jax.Array
    mask: jax.Array
    stopped: jax.Array
    logits: jax.Array
    caches: list
    prompt_mask: jax.Array
    keys: jax.Array


def left_pad(prompts: list[list[int]], pad_id: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as one block, padded on the left: int32 `[B, length]` and its bool mask."""
    tokens = np.full((len(prompts), length), pad_id, np.int32)
    mask = np.zeros((len(prompts), length), bool)
    for row, ids in enumerate(prompts):
        if not 0 < len(ids) <= length:
            raise ValueError(f"prompt {row} has {len(ids)} tokens, but must have 1 to {length}")
        tokens[row, length - len(ids) :], mask[row, length - len(ids) :] = ids, True
    return tokens, mask


def prefill(
    definition: ModelDefinition,
    params,
    layers: list,
    tokens_BxP,
    mask_BxP,
    keys_B,
    new_tokens: int,
    pad_id: int,
):
    """Reads the prompts and returns the state before the first new token.

    Args:
        definition: a language model.
        params: its parameters.
        layers: from `layer_parameters(params)`.
        tokens_BxP, mask_BxP: from `left_pad`.
        keys_B: one PRNG key per request.
        new_tokens: T.
        pad_id: fills the replies' unused slots.
    """
    model = definition.bind(params)
    B, P = tokens_BxP.shape
    slots = P + new_tokens
    positions_BxP = jnp.maximum(jnp.cumsum(mask_BxP, axis=1) - 1, 0)
    visible = jnp.pad(mask_BxP, ((0, 0), (0, new_tokens)))[:, None, None, :]
    causal_PxS = jnp.arange(slots)[None, :] <= jnp.arange(P)[:, None]
    hidden, caches = model.decoder.extend(
        tokens_BxP,
        positions_BxP,
        visible & causal_PxS[None, None],
        model.decoder.empty_caches(B, slots),
        0,
        layers,
    )
    return DecodeState(
        step=jnp.zeros((), jnp.int32),
        tokens=jnp.full((B, new_tokens), pad_id, jnp.int32),
        log_probs=jnp.zeros((B, new_tokens), jnp.float32),
        mask=jnp.zeros((B, new_tokens), jnp.float32),
        stopped=jnp.zeros((B,), bool),
        logits=model.logits(hidden[:, -1:])[:, 0],
        caches=caches,
        prompt_mask=mask_BxP,
        keys=keys_B,
    )


def ends_with(tokens_BxT: jax.Array, step: jax.Array, sequence: tuple[int, ...]) -> jax.Array:
    """Whether the tokens up to and including slot `step` end with the sequence: bool `[B]`."""
    start = step + 1 - len(sequence)
    last = jax.lax.dynamic_slice_in_dim(tokens_BxT, jnp.maximum(start, 0), len(sequence), axis=1)
    return (last == jnp.asarray(sequence, jnp.int32)).all(1) & (start >= 0)


def advance(
    definition: ModelDefinition,
    params,
    layers: list,
    state: DecodeState,
    until: jax.Array,
    sampling: SamplingConfig,
    stop_sequences: tuple[tuple[int, ...], ...],
) -> DecodeState:
    """Draws tokens until slot `until`, or until every reply has stopped.

    Args:
        definition, params, layers: as in `prefill`.
        state: from `prefill` or an earlier `advance`.
        until: int32 scalar, at most T.
        sampling: how tokens are drawn.
        stop_sequences: token sequences that end a reply; one longer than T never does.
    """
    model = definition.bind(params)
    B, T = state.tokens.shape
    P = state.prompt_mask.shape[1]
    lengths_B = state.prompt_mask.sum(1)
    padded_BxS = jnp.pad(state.prompt_mask, ((0, 0), (0, T)))
    slots_S = jnp.arange(P + T)

    def unfinished(s: DecodeState):
        return (s.step < until) & ~s.stopped.all()

    def turn(s: DecodeState) -> DecodeState:
        keys_B = jax.vmap(partial(jax.random.fold_in, data=s.step))(s.keys)
        drawn_B = sample(s.logits, keys_B, sampling)
        log_prob_B = token_log_probs(s.logits, drawn_B, temperature=sampling.temperature or 1.0)
        active_B = ~s.stopped
        tokens = s.tokens.at[:, s.step].set(jnp.where(active_B, drawn_B, s.tokens[:, s.step]))
        stopped = s.stopped
        for sequence in (s for s in stop_sequences if len(s) <= T):
            stopped = stopped | (ends_with(tokens, s.step, sequence) & active_B)
        seen = padded_BxS | ((slots_S >= P) & (slots_S <= P + s.step))[None]
        hidden, caches = model.decoder.extend(
            tokens[:, s.step][:, None],
            (lengths_B + s.step)[:, None],
            seen[:, None, None, :],
            s.caches,
            P + s.step,
            layers,
        )
        return DecodeState(
            step=s.step + 1,
            tokens=tokens,
            log_probs=s.log_probs.at[:, s.step].set(jnp.where(active_B, log_prob_B, 0.0)),
            mask=s.mask.at[:, s.step].set(active_B.astype(jnp.float32)),
            stopped=stopped,
            logits=model.logits(hidden)[:, 0],
            caches=caches,
            prompt_mask=s.prompt_mask,
            keys=s.keys,
        )

    if B > 1:
        return jax.lax.while_loop(unfinished, turn, state)
    # With a single row XLA multiplies caches `[K, S, C]`, and would copy those with a row axis at every turn.
    # With more rows it is the other way round.
    without_rows = jax.lax.while_loop(
        unfinished,
        lambda s: _map_caches(lambda x: x[0], turn(_map_caches(lambda x: x[None], s))),
        _map_caches(lambda x: x[0], state),
    )
    return _map_caches(lambda x: x[None], without_rows)


def _map_caches(change, state: DecodeState) -> DecodeState:
    return replace(state, caches=jax.tree.map(change, state.caches))


def decode(
    definition: ModelDefinition,
    params,
    tokens_BxP,
    mask_BxP,
    keys_B,
    *,
    sampling: SamplingConfig,
    stop_sequences: tuple[tuple[int, ...], ...],
    pad_id: int,
    layers: list | None = None,
) -> DecodeState:
    """Whole replies to a batch of prompts; pure, made to be jitted. Arguments as `prefill` and `advance`.

    `layers` are `layer_parameters(params, rows=B)`; where they are given, the weights are not laid out anew.
    """
    check_room(definition, tokens_BxP.shape[1], sampling.max_new_tokens)
    T = sampling.max_new_tokens
    layers = layer_parameters(params, rows=len(tokens_BxP)) if layers is None else layers
    state = prefill(definition, params, layers, tokens_BxP, mask_BxP, keys_B, T, pad_id)
    return advance(definition, params, layers, state, T, sampling, stop_sequences)


def check_room(definition: ModelDefinition, prompt: int, new: int) -> None:
    """Refuse a prompt and a reply that together exceed the context.

    Raises:
        ValueError: naming the three numbers.
    """
    if prompt + new > definition.config.context_length:
        raise ValueError(
            f"{prompt} prompt tokens and {new} new ones exceed the context length of "
            f"{definition.config.context_length}: shorten the prompt or lower max_new_tokens"
        )


def request_keys(seeds) -> jax.Array:
    """One PRNG key per request from integer seeds `[B]`."""
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
