"""A GLM that answers messages: ChatGLM's numbered rounds, the reply written into the blank at their end."""

from collections.abc import Generator
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

from gptjax.data.chat import Messages
from gptjax.data.infilling import RESERVED, BlankIds
from gptjax.data.rounds import round_prompt
from gptjax.generation.blanks import split_answers, write_blanks
from gptjax.generation.decode import left_pad, request_keys
from gptjax.generation.engine import fitting_sampling, padded_length
from gptjax.generation.sampling import SamplingConfig
from gptjax.models.quantization import QuantizationConfig, quantize
from gptjax.stages.handover import TrainedModel


class RoundModel:
    """Replies to dialogues without a system message.

    Attributes:
        context_length: most tokens of dialogue and reply together.
        sampling: a GLM has no defaults of its own.
    """

    def __init__(self, model: TrainedModel, quantization: QuantizationConfig | None = None):
        """Args:
        model: of stages/infill_chat.py.
        quantization: how its linear maps are kept; None leaves them as they are.
        """
        self._definition, self._tokenizer = model.definition, model.tokenizer
        self._params = model.params if quantization is None else quantize(model.params, quantization)
        self._ids = BlankIds.after(model.definition.config.vocab_size - RESERVED)
        self.context_length, self.sampling = model.definition.config.context_length, {}

    @lru_cache(maxsize=8)  # noqa: B019 - a model lives as long as the process
    def _program(self, sampling: SamplingConfig):
        ids = {"start_id": self._ids.start, "end_id": self._ids.end}
        return jax.jit(partial(write_blanks, self._definition, sampling=sampling, **ids))

    def stream(self, messages: Messages, *, seed: int, **sampling: Any) -> Generator[str, None, None]:
        """The reply in one piece; `sampling` names what `SamplingConfig` has.

        Raises:
            ConfigError: the messages leave no room for a reply.
            DataError: there is a system message.
        """
        part_a = self._part_a(messages)
        sampling = fitting_sampling(len(part_a), self.context_length, SamplingConfig(**sampling))
        length = padded_length(len(part_a), sampling.max_new_tokens, self.context_length)
        tokens, mask = left_pad([part_a], 0, length)
        places, counts = np.array([[len(part_a) - 1]]), np.ones(1, np.int32)
        drawn = self._program(sampling)(self._params, tokens, mask, places, counts, request_keys([seed]))
        reply = split_answers(np.asarray(drawn)[0], 1, self._ids.end)[0]
        yield self._tokenizer.decode([token for token in reply if token < self._ids.cls])

    def prompt_length(self, messages: Messages) -> int:
        """Tokens that the messages take as a prompt."""
        return len(self._part_a(messages))

    def _part_a(self, messages: Messages) -> list[int]:
        return [*self._tokenizer.encode(round_prompt(messages)), self._ids.document]
