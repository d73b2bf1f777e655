"""Text in one language in, text in the other out."""

import jax
import numpy as np

from gptjax.generation.beam import BeamConfig, translate
from gptjax.models.functional import ModelDefinition
from gptjax.sharding.mesh import to_host

# One program for all parameters of a model: the last and the averaged ones are compared.
_translate = jax.jit(translate, static_argnames=("definition", "search", "end_id", "pad_id"))


class Translator:
    """Translates sentences with an encoder-decoder and its tokenizer."""

    def __init__(self, definition: ModelDefinition, params, tokenizer, search: BeamConfig):
        """Args:
        definition, params: an `EncoderDecoder`.
        tokenizer: its tokenizer; has `encode`, `decode`, `end_of_text_id`, `pad_id`.
        search: see `BeamConfig`.
        """
        self._definition, self._params = definition, params
        self._tokenizer, self._search = tokenizer, search

    def __call__(self, sentences: list[str], batch_size: int = 32) -> list[str]:
        """The translation of each sentence; it depends on the sentence alone, not on its neighbours.

        Raises:
            ValueError: a sentence is longer than the model's context.
        """
        ids = [self._tokenizer.encode(sentence) for sentence in sentences]
        length, most = max((len(i) for i in ids), default=0), self._definition.config.context_length
        if length > most:
            longest = next(s for s, i in zip(sentences, ids, strict=True) if len(i) == length)
            raise ValueError(
                f"the sentence {longest[:40]!r}... has {length} tokens, but the model reads at most "
                f"{most}: cut it"
            )
        translations = []
        for first in range(0, len(ids), batch_size):
            part = ids[first : first + batch_size]
            sources = np.full((batch_size, length), self._tokenizer.pad_id, np.int32)
            mask = np.zeros((batch_size, length), np.int32)
            for row, source in enumerate(part):
                sources[row, : len(source)], mask[row, : len(source)] = source, 1
            # Rows without a source are given one token to see; their output is thrown away.
            mask[len(part) :, 0] = 1
            found = _translate(
                self._definition,
                self._params,
                sources,
                mask,
                search=self._search,
                end_id=self._tokenizer.end_of_text_id,
                pad_id=self._tokenizer.pad_id,
            )
            # Special ids decode to nothing.
            translations += [
                self._tokenizer.decode(row) for row in to_host(found.tokens)[: len(part)].tolist()
            ]
        return translations
