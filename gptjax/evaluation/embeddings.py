"""Sentence embeddings of an encoder: the mean of its hidden states (Reimers and Gurevych 2019)."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config import ConfigError
from gptjax.stages.handover import TrainedModel


def embed(model: TrainedModel, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
    """One vector a text: `e = m / |m|` with m the mean of the hidden states of all its tokens.

    [CLS] and [SEP] count as tokens; a text longer than the context is cut. Rows are padded to a power of two,
    so that few programs are compiled.

    Args:
        model: from `load_model`, with an encoder and a WordPiece tokenizer.
        texts: of which each gets an embedding.
        batch_size: texts at a time.

    Returns:
        float32 `[len(texts), D]`; the cosine of two is their scalar product.

    Raises:
        ConfigError: the model is no encoder.
    """
    if not hasattr(model.tokenizer, "cls_id"):
        raise ConfigError("sentence embeddings need an encoder with a WordPiece tokenizer, such as BERT's")
    tokenizer, context = model.tokenizer, model.definition.config.context_length
    rows = [tokenizer.encode(text)[: context - 2] for text in texts]
    rows = [[tokenizer.cls_id, *ids, tokenizer.sep_id] for ids in rows]
    found = np.zeros((len(rows), model.definition.config.width), np.float32)
    order, run = sorted(range(len(rows)), key=lambda i: len(rows[i])), jax.jit(partial(mean_hidden, model))
    for first in range(0, len(rows), batch_size):
        chosen = order[first : first + batch_size]
        length = min(context, 1 << (max(len(rows[i]) for i in chosen) - 1).bit_length())
        tokens = np.full((len(chosen), length), tokenizer.pad_id, np.int32)
        real = np.zeros_like(tokens)
        for row, i in enumerate(chosen):
            tokens[row, : len(rows[i])], real[row, : len(rows[i])] = rows[i], 1
        found[chosen] = run(model.params, tokens, real)
    return found


def mean_hidden(model: TrainedModel, params, tokens_BxL: jax.Array, real_BxL: jax.Array) -> jax.Array:
    """The mean over the real positions of the hidden states, divided by its length, float32 `[B, D]`."""
    encoder = model.definition.bind(params).encoder
    hidden_BxLxD = encoder(tokens_BxL, segment_ids=real_BxL)
    mean_BxD = (hidden_BxLxD * real_BxL[..., None]).sum(1) / real_BxL.sum(1, keepdims=True)
    return mean_BxD / jnp.linalg.norm(mean_BxD, axis=-1, keepdims=True)
