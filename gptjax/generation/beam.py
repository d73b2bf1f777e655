"""Beam search: the K likeliest beginnings are kept until no live one can overtake the best finished one.

Legend: B batch, K beams, N = B K rows, T slots of new tokens, V vocabulary, S source length, P prompt slots.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.config import configclass
from gptjax.generation.decode import check_room
from gptjax.generation.sampling import shortlist
from gptjax.models.functional import ModelDefinition, layer_parameters, unstack
from gptjax.ranges import Count, Natural, NonNegative


@configclass
class BeamConfig:
    """Beam search of Vaswani et al. 2017, section 6.1.

    Attributes:
        beams: K; 1 is greedy decoding.
        alpha: of the length penalty; 0 compares plain log-probabilities, which favours short outputs.
        extra_tokens: a translation has at most this many tokens more than its source, its end among them.
    """

    beams: Count = 4
    alpha: NonNegative = 0.6
    extra_tokens: Natural = 50


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hypotheses:
    """The best output of each row.

    Attributes:
        tokens: int32 `[B, T]`, the end token included where there is one, then the pad id.
        scores: float32 `[B]`, log-probability over length penalty.
        finished: bool `[B]`; False where no beam ended within the limit, and the best beginning is given.
    """

    tokens: jax.Array
    scores: jax.Array
    finished: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BeamState:
    """A search under way.

    Attributes:
        step: int32 scalar, tokens so far.
        live: int32 `[B, K, T]`, the beginnings, best first.
        log_probs: float32 `[B, K]`, theirs.
        best: int32 `[B, T]`, the best finished output.
        best_score: float32 `[B]`; -inf before there is one.
        settled: bool `[B]`, whether the row's result is final; nothing of it changes any more.
        cache: tree of `[N, ...]`.
    """

    step: jax.Array
    live: jax.Array
    log_probs: jax.Array
    best: jax.Array
    best_score: jax.Array
    settled: jax.Array
    cache: Any


def length_penalty(length, alpha: float):
    """`((5 + length) / 6)^alpha` (Wu et al. 2016, arXiv 1609.08144, section 7)."""
    return ((5.0 + length) / 6.0) ** alpha


def beam_search(
    next_log_probs: Callable,
    cache,
    start_B: jax.Array,
    limits_B: jax.Array,
    slots: int,
    *,
    beams: int,
    alpha: float,
    end_id: int,
    pad_id: int,
) -> Hypotheses:
    """The output of the highest `log p / length_penalty` that a beam of K finds; pure, made to be jitted.

    A turn takes the 2 K best continuations of the live beams. Ends among the first K are finished outputs;
    the K best that do not end live on. A row is settled at its limit, or once its best live log-probability
    over the penalty at the limit is no higher than its best finished score: log-probabilities only fall, so
    nothing can overtake it. With one beam the first end settles it.

    Args:
        next_log_probs: (last tokens int32 `[N]`, step, cache) -> (float32 `[N, V]`, cache).
        cache: tree of `[N, ...]`, row b's beams side by side.
        start_B: int32 `[B]`, what each row's first token follows.
        limits_B: int32 `[B]`, the most tokens of each row, at least 1 and at most T.
        slots: T.
        beams, alpha: as in `BeamConfig`.
        end_id, pad_id: the token that ends an output, and what fills unused slots.

    Source: Vaswani et al. 2017, section 6.1; tensor2tensor's stopping rule.
    """
    B, K, T = len(start_B), beams, slots
    rows = jnp.arange(B)[:, None]

    def turn(s: BeamState) -> BeamState:
        last_BxK = jnp.where(s.step == 0, start_B[:, None], s.live[:, :, s.step - 1])
        log_probs, cache = next_log_probs(last_BxK.reshape(B * K), s.step, s.cache)
        V = log_probs.shape[-1]
        totals = (s.log_probs[:, :, None] + log_probs.reshape(B, K, V)).reshape(B, K * V)
        totals_Bx2K, places = shortlist(totals, min(2 * K, K * V))
        parents, tokens = places // V, places % V
        outputs = s.live[rows, parents].at[:, :, s.step].set(tokens)
        ends = tokens == end_id

        scores = jnp.where(ends[:, :K], totals_Bx2K[:, :K] / length_penalty(s.step + 1.0, alpha), -jnp.inf)
        first, score = scores.argmax(1), scores.max(1)
        better = score > s.best_score
        best = jnp.where(better[:, None], outputs[rows[:, 0], first], s.best)
        best_score = jnp.maximum(score, s.best_score)

        live_totals, chosen = shortlist(jnp.where(ends, -jnp.inf, totals_Bx2K), K)
        beams_of_origin = (rows * K + parents[rows, chosen]).reshape(B * K)
        within_reach = live_totals[:, 0] / length_penalty(limits_B.astype(jnp.float32), alpha)
        settled = (s.step + 1 >= limits_B) | (within_reach <= best_score)
        if K == 1:
            settled |= best_score > -jnp.inf

        def unless_settled(new, old):
            return jnp.where(s.settled.reshape(B, *[1] * (new.ndim - 1)), old, new)

        return BeamState(
            step=s.step + 1,
            live=unless_settled(outputs[rows, chosen], s.live),
            log_probs=unless_settled(live_totals, s.log_probs),
            best=unless_settled(best, s.best),
            best_score=unless_settled(best_score, s.best_score),
            settled=settled | s.settled,
            cache=jax.tree.map(lambda x: x[beams_of_origin], cache),
        )

    state = jax.lax.while_loop(lambda s: ~s.settled.all(), turn, _nothing_found(cache, B, K, T, pad_id))
    finished = state.best_score > -jnp.inf
    unfinished_score = state.log_probs[:, 0] / length_penalty(limits_B.astype(jnp.float32), alpha)
    return Hypotheses(
        tokens=jnp.where(finished[:, None], state.best, state.live[:, 0]),
        scores=jnp.where(finished, state.best_score, unfinished_score),
        finished=finished,
    )


def _nothing_found(cache, B: int, K: int, T: int, pad_id: int) -> BeamState:
    """The search before its first turn: the beams start equal, so one of them is enough."""
    worst = jnp.full((B, K), -jnp.inf, jnp.float32)
    return BeamState(
        step=jnp.zeros((), jnp.int32),
        live=jnp.full((B, K, T), pad_id, jnp.int32),
        log_probs=worst.at[:, 0].set(0.0),
        best=jnp.full((B, T), pad_id, jnp.int32),
        best_score=worst[:, 0],
        settled=jnp.zeros((B,), bool),
        cache=cache,
    )


def translate(
    definition: ModelDefinition,
    params,
    sources_BxS,
    mask_BxS,
    *,
    search: BeamConfig,
    end_id: int,
    pad_id: int,
) -> Hypotheses:
    """Translations by an encoder-decoder; the source is encoded once.

    Args:
        definition, params: an `EncoderDecoder`.
        sources_BxS: int32 `[B, S]`.
        mask_BxS: int32 `[B, S]`, 1 for the source's tokens and 0 for padding.
        search: see `BeamConfig`.
        end_id: ends a target, and is what its first token follows.
        pad_id: fills unused slots.
    """
    model, layers = definition.bind(params), unstack(params["decoder"])
    (B, S), K = sources_BxS.shape, search.beams
    T = min(S + search.extra_tokens, definition.config.context_length)
    memories = model.remember(model.encode(sources_BxS, segment_ids=mask_BxS), layers)
    memories, memory_mask = repeat_rows((memories, (mask_BxS != 0)[:, None, None]), K)

    def next_log_probs(tokens_N, step, caches):
        seen = (jnp.arange(T) <= step)[None, None, None]
        positions = jnp.full((B * K, 1), step, jnp.int32)
        hidden, caches = model.extend(
            tokens_N[:, None], positions, seen, caches, step, layers, memories, memory_mask
        )
        return jax.nn.log_softmax(model.logits(hidden)[:, 0]), caches

    limits_B = jnp.minimum(mask_BxS.sum(1) + search.extra_tokens, T)
    return beam_search(
        next_log_probs,
        model.empty_caches(B * K, T),
        jnp.full((B,), end_id, jnp.int32),
        limits_B,
        T,
        beams=K,
        alpha=search.alpha,
        end_id=end_id,
        pad_id=pad_id,
    )


def complete(
    definition: ModelDefinition,
    params,
    tokens_BxP,
    mask_BxP,
    new_tokens: int,
    *,
    beams: int,
    alpha: float,
    end_id: int,
    pad_id: int,
) -> Hypotheses:
    """Continuations of prompts by a language model.

    Args:
        definition, params: a `LanguageModel`.
        tokens_BxP, mask_BxP: from `left_pad`.
        new_tokens: T.
        beams, alpha: as in `BeamConfig`; the penalty counts new tokens alone.
        end_id, pad_id: as in `beam_search`.

    Raises:
        ValueError: prompt and new tokens exceed the context.
    """
    B, P = tokens_BxP.shape
    check_room(definition, P, new_tokens)
    model, layers, slots = definition.bind(params), layer_parameters(params), P + new_tokens
    positions_BxP = jnp.maximum(jnp.cumsum(mask_BxP, axis=1) - 1, 0)
    known_BxS = jnp.pad(mask_BxP, ((0, 0), (0, new_tokens)), constant_values=True)
    # All but the prompt's last token, which the search itself reads as what the first new one follows.
    causal = jnp.arange(slots)[None] <= jnp.arange(P - 1)[:, None]
    _, caches = model.decoder.extend(
        tokens_BxP[:, :-1],
        positions_BxP[:, :-1],
        known_BxS[:, None, None] & causal[None, None],
        model.decoder.empty_caches(B, slots),
        0,
        layers,
    )
    caches, known_NxS, last_N = repeat_rows((caches, known_BxS, positions_BxP[:, -1]), beams)

    def next_log_probs(tokens_N, step, caches):
        slot = P - 1 + step
        seen = (known_NxS & (jnp.arange(slots) <= slot))[:, None, None]
        positions = (last_N + step)[:, None]
        hidden, caches = model.decoder.extend(tokens_N[:, None], positions, seen, caches, slot, layers)
        return jax.nn.log_softmax(model.logits(hidden)[:, 0]), caches

    return beam_search(
        next_log_probs,
        caches,
        tokens_BxP[:, -1],
        jnp.full((B,), new_tokens, jnp.int32),
        new_tokens,
        beams=beams,
        alpha=alpha,
        end_id=end_id,
        pad_id=pad_id,
    )


def repeat_rows(tree, count: int):
    """Every row of every array `count` times, the copies side by side."""
    return jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), tree)
