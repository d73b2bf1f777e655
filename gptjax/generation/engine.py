"""Text in, text out: a trained model behind a chat or a batch of prompts."""

import codecs
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, lru_cache, partial

import jax
import jax.numpy as jnp

from gptjax.config import ConfigError
from gptjax.generation.decode import advance, check_room, decode, left_pad, prefill, request_keys
from gptjax.generation.sampling import SamplingConfig
from gptjax.models.functional import ModelDefinition, layer_parameters
from gptjax.sharding.mesh import to_host

# Prompts are padded to a multiple of this, so that few lengths are compiled.
PROMPT_BLOCK = 32


def padded_length(longest: int, new_tokens: int, context_length: int) -> int:
    """Slots for prompts of at most `longest` tokens: a whole number of blocks where the context has room."""
    rounded = -(-longest // PROMPT_BLOCK) * PROMPT_BLOCK
    return max(longest, min(rounded, context_length - new_tokens))


def fitting_sampling(prompt_tokens: int, context_length: int, sampling: SamplingConfig) -> SamplingConfig:
    """The sampling with a reply no longer than the context has room for behind a dialogue's prompt.

    Raises:
        ConfigError: there is no room.
    """
    room = context_length - prompt_tokens
    if room < 1:
        raise ConfigError(
            f"the dialogue takes {prompt_tokens} tokens, but the model has a context length of "
            f"{context_length}: shorten it"
        )
    return replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))


class TextEngine:
    """Generates replies to prompts given as token ids.

    Attributes:
        tokenizer: has `token_bytes`, `pad_id`.
        context_length: most tokens of prompt and reply together.
    """

    def __init__(self, definition: ModelDefinition, params, tokenizer, stop_sequences):
        """Args:
        definition, params: a language model; the parameters may come from `quantize`.
        tokenizer: its tokenizer.
        stop_sequences: token sequences that end a reply; where several match, the longest is cut off.
        """
        self._definition, self._params = definition, params
        self.tokenizer = tokenizer
        self._stop = tuple(sorted((tuple(s) for s in stop_sequences), key=len, reverse=True))
        self.context_length = definition.config.context_length

    @cached_property
    def _layers(self):
        return jax.jit(partial(layer_parameters, rows=1))(self._params)

    @lru_cache(maxsize=8)  # noqa: B019 - an engine lives as long as the process
    def _programs(self, sampling: SamplingConfig):
        start = partial(prefill, self._definition, pad_id=self.tokenizer.pad_id)
        go_on = partial(advance, self._definition, sampling=sampling, stop_sequences=self._stop)
        whole = partial(
            decode,
            self._definition,
            sampling=sampling,
            stop_sequences=self._stop,
            pad_id=self.tokenizer.pad_id,
        )
        return (
            jax.jit(start, static_argnames="new_tokens"),
            jax.jit(go_on, donate_argnames="state"),
            jax.jit(whole),
        )

    def _padded_length(self, prompts, new_tokens: int) -> int:
        longest = max(len(p) for p in prompts)
        length = padded_length(longest, new_tokens, self.context_length)
        check_room(self._definition, length, new_tokens)
        return length

    def stream(self, prompt: list[int], sampling: SamplingConfig, seed: int = 0) -> Iterator[str]:
        """Pieces of the reply's text as they are drawn; together they are the whole reply.

        Bytes of a character split over tokens are held back until it is complete, and so are tokens that
        may turn out to begin a stop sequence.
        """
        pieces = self._pieces(prompt, sampling, seed)
        return _without_space_before(pieces) if getattr(self.tokenizer, "prefix", False) else pieces

    def _pieces(self, prompt: list[int], sampling: SamplingConfig, seed: int) -> Iterator[str]:
        start, go_on, _ = self._programs(sampling)
        tokens, mask = left_pad(
            [prompt], self.tokenizer.pad_id, self._padded_length([prompt], sampling.max_new_tokens)
        )
        key, new_tokens = request_keys([seed]), sampling.max_new_tokens
        state = start(self._params, self._layers, tokens, mask, key, new_tokens=new_tokens)
        held, characters = [], codecs.getincrementaldecoder("utf-8")("replace")
        for count in range(1, sampling.max_new_tokens + 1):
            state = go_on(self._params, self._layers, state, jnp.int32(count))
            held.append(int(state.tokens[0, count - 1]))
            if bool(state.stopped[0]):
                held = self._without_stop(held)
                break
            certain = len(held) - self._begun_stop(held)
            ready, held = held[:certain], held[certain:]
            if text := characters.decode(self._bytes(ready)):
                yield text
        if text := characters.decode(self._bytes(held), final=True):
            yield text

    def complete(
        self, prompts: list[list[int]], sampling: SamplingConfig, seeds: list[int], batch_size: int = 64
    ) -> list[str]:
        """The replies to many prompts.

        Args:
            prompts: token ids of each.
            sampling: how tokens are drawn.
            seeds: one per prompt; a prompt's reply depends on its seed, not on its neighbours.
            batch_size: prompts decoded together.
        """
        program = self._programs(sampling)[2]
        length = self._padded_length(prompts, sampling.max_new_tokens)
        replies = []
        for first in range(0, len(prompts), batch_size):
            part = list(range(first, min(first + batch_size, len(prompts))))
            rows = part + [part[-1]] * (batch_size - len(part) if len(prompts) > batch_size else 0)
            tokens, mask = left_pad([prompts[i] for i in rows], self.tokenizer.pad_id, length)
            out = program(self._params, tokens, mask, request_keys([seeds[i] for i in rows]))
            ids, mask, ends = to_host((out.tokens, out.mask, out.stopped))
            kept = mask.sum(1).astype(int)
            for row in range(len(part)):
                reply = ids[row, : kept[row]].tolist()
                replies.append(self.tokenizer.decode(self._without_stop(reply) if ends[row] else reply))
        return replies

    def _without_stop(self, reply: list[int]) -> list[int]:
        for sequence in self._stop:
            if tuple(reply[-len(sequence) :]) == sequence:
                return reply[: -len(sequence)]
        return reply

    def _begun_stop(self, reply: list[int]) -> int:
        """How many of the last tokens are the beginning of a stop sequence."""
        begun = (n for s in self._stop for n in range(1, len(s)) if tuple(reply[-n:]) == s[:n])
        return max(begun, default=0)

    def _bytes(self, ids: list[int]) -> bytes:
        return b"".join(map(self.tokenizer.token_bytes, ids))


def _without_space_before(pieces: Iterator[str]) -> Iterator[str]:
    """The pieces without a space at their beginning, which a tokenizer's `decode` leaves out as well."""
    for first in pieces:
        if bare := first.removeprefix(" "):
            yield bare
        break
    yield from pieces
