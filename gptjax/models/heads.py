"""Models with a purpose: a language model, and a scalar model (reward or value).

Legend: B batch, L length, D model width, V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.models.layers import constant_param, normal_param
from gptjax.models.matmul import matmul
from gptjax.models.transformer import Decoder, DecoderConfig


class LanguageModel(nnx.Module):
    """A decoder and the matrix that turns its hidden states into logits."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.decoder = Decoder(config, rngs)
        matrix = (config.width, config.vocab_size), ("embed", "vocab"), config.init_std
        self.unembedding = None if config.tied else normal_param(rngs, *matrix)

    def hidden(self, tokens_BxL, **kwargs) -> jax.Array:
        """Hidden states float32 `[B, L, D]`; keyword arguments as `Decoder`'s."""
        return self.decoder(tokens_BxL, **kwargs)

    def output_matrix(self) -> tuple[jax.Array, bool]:
        """The output weights and whether they are transposed: `[V, D], True` tied, `[D, V], False` untied."""
        if self.unembedding is None:
            return self.decoder.embedding[...], True
        return self.unembedding[...], False

    def logits(self, hidden_BxLxD: jax.Array) -> jax.Array:
        """Next-token logits, float32 `[B, L, V]`."""
        weight, transposed = self.output_matrix()
        return matmul(hidden_BxLxD, weight.T if transposed else weight, self.config.compute_dtype)

    def __call__(self, tokens_BxL, **kwargs) -> jax.Array:
        """Next-token logits, float32 `[B, L, V]`; keyword arguments as `Decoder`'s."""
        return self.logits(self.hidden(tokens_BxL, **kwargs))


class ScalarModel(nnx.Module):
    """A decoder with one number per position: the reward model and the value function.

    The head starts from N(0, 1 / (D + 1)), a variance (Stiennon et al. 2020, appendix B.1). Its product
    and its bias are float32 whatever the compute precision: rewards differ in the third digit.
    """

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.decoder = Decoder(config, rngs)
        std = (config.width + 1) ** -0.5
        self.head = normal_param(rngs, (config.width, 1), ("embed", "scalar"), std)
        self.bias = constant_param((1,), ("scalar",), 0.0)

    def __call__(self, tokens_BxL, **kwargs) -> jax.Array:
        """One float32 scalar per position, `[B, L]`; keyword arguments as `Decoder`'s."""
        hidden_BxLxD = self.decoder(tokens_BxL, **kwargs)
        return jnp.squeeze(matmul(hidden_BxLxD, self.head[...], "float32"), -1) + self.bias[...]
