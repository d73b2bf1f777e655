"""GLM's generation: Part A is read once, then its blanks are written one by one, with a key/value cache.

Legend: B batch, P slots of Part A, K blanks, T slots of Part B, S = P + T cache slots.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.generation.decode import check_room
from gptjax.generation.sampling import SamplingConfig, sample
from gptjax.models.functional import ModelDefinition, unstack


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlankState:
    """A batch of texts whose blanks are being written.

    Attributes:
        step: int32 scalar, tokens drawn so far.
        tokens: int32 `[B, T]`: answers, each ended by the end token; the pad id after the last.
        entering: int32 `[B]`, the token that is read next: a start token or the last one drawn.
        blank: int32 `[B]`, number of the blank that is being written, from 0.
        place: int32 `[B]`, its place in the blank, the second position, from 1.
        caches: one `KVCache` a layer.
    """

    step: jax.Array
    tokens: jax.Array
    entering: jax.Array
    blank: jax.Array
    place: jax.Array
    caches: list


def write_blanks(
    definition: ModelDefinition,
    params,
    tokens_BxP,
    mask_BxP,
    places_BxK,
    counts_B,
    keys_B,
    *,
    sampling: SamplingConfig,
    start_id: int,
    end_id: int,
    pad_id: int = 0,
) -> jax.Array:
    """Answers to the blanks of a batch of Part As; pure, made to be jitted.

    Args:
        definition, params: a GLM.
        tokens_BxP, mask_BxP: Part A from `left_pad`.
        places_BxK: int32, the index in Part A of each blank's mask, in the order in which they are written.
        counts_B: int32, blanks of each row, 1 to K.
        keys_B: one PRNG key per row.
        sampling: how tokens are drawn; T is its `max_new_tokens`, for all blanks of a row together.
        start_id, end_id: around each blank.
        pad_id: fills the unused slots.

    Returns:
        int32 `[B, T]`, see `BlankState.tokens`.

    Raises:
        ValueError: Part A and T exceed the context.
    """
    (B, P), T = tokens_BxP.shape, sampling.max_new_tokens
    check_room(definition, P, T)
    model, layers = definition.bind(params), unstack(params["blocks"])
    indices_BxP = jnp.maximum(jnp.cumsum(mask_BxP, axis=1) - 1, 0)
    positions_BxPx2 = jnp.stack([indices_BxP, jnp.zeros_like(indices_BxP)], -1)
    part_a_BxS, slots_S = jnp.pad(mask_BxP, ((0, 0), (0, T))), jnp.arange(P + T)
    caches = model.empty_caches(B, P + T)
    _, caches = model.extend(tokens_BxP, positions_BxPx2, part_a_BxS[:, None, None], caches, 0, layers)

    def unfinished(s: BlankState):
        return (s.step < T) & (s.blank < counts_B).any()

    def turn(s: BlankState) -> BlankState:
        at_B = jnp.take_along_axis(places_BxK, jnp.minimum(s.blank, counts_B - 1)[:, None], axis=1)[:, 0]
        seen_BxS = part_a_BxS | ((slots_S >= P) & (slots_S <= P + s.step))[None]
        positions = jnp.stack([at_B, s.place], -1)[:, None]
        hidden, caches = model.extend(
            s.entering[:, None], positions, seen_BxS[:, None, None], s.caches, P + s.step, layers
        )
        keys = jax.vmap(partial(jax.random.fold_in, data=s.step))(keys_B)
        drawn_B = sample(model.logits(hidden)[:, 0], keys, sampling)
        active_B, ended_B = s.blank < counts_B, drawn_B == end_id
        return BlankState(
            step=s.step + 1,
            tokens=s.tokens.at[:, s.step].set(jnp.where(active_B, drawn_B, pad_id)),
            entering=jnp.where(ended_B, start_id, drawn_B),
            blank=s.blank + (active_B & ended_B),
            place=jnp.where(ended_B, 1, s.place + 1),
            caches=caches,
        )

    state = BlankState(
        step=jnp.zeros((), jnp.int32),
        tokens=jnp.full((B, T), pad_id, jnp.int32),
        entering=jnp.full((B,), start_id, jnp.int32),
        blank=jnp.zeros((B,), jnp.int32),
        place=jnp.ones((B,), jnp.int32),
        caches=caches,
    )
    return jax.lax.while_loop(unfinished, turn, state).tokens


def split_answers(tokens_T: np.ndarray, count: int, end_id: int) -> list[list[int]]:
    """The `count` answers in a row of `write_blanks`; what the T slots left no room for is empty or cut."""
    answers, rest = [], [int(token) for token in tokens_T]
    for _ in range(count):
        end = rest.index(end_id) if end_id in rest else len(rest)
        answers.append(rest[:end])
        rest = rest[end + 1 :]
    return answers
