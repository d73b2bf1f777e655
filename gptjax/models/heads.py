"""Models with a purpose: a language model, a scalar model (reward or value), an encoder, BERT's heads.

Legend: B batch, L length, D model width, V vocabulary.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.models.block import activate, make_norm
from gptjax.models.encoder import Encoder, EncoderConfig
from gptjax.models.layers import Linear, constant_param, normal_param
from gptjax.models.matmul import matmul, tied_logits
from gptjax.models.transformer import Decoder, DecoderConfig
from gptjax.sharding.rules import constrain


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
        product = tied_logits if transposed else matmul
        return product(hidden_BxLxD, weight, self.config.compute_dtype)

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


class EncoderModel(nnx.Module):
    """An encoder without a head, whose hidden states are what is wanted of it, as in sentence embeddings."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs)

    def __call__(self, tokens_BxL, **kwargs) -> jax.Array:
        """Hidden states float32 `[B, L, D]`; keyword arguments as `Encoder`'s."""
        return self.encoder(tokens_BxL, **kwargs)


class MaskedLanguageModel(nnx.Module):
    """BERT with the two heads of its pre-training (Devlin et al. 2018, section 3.1).

    Masked tokens: `norm(activation(h W + b)) E^T + c` with the token embedding E and a free bias c a token.
    Next sentence: `tanh(h_0 W + b) W' + b'` of the first token, [CLS]; class 0 is the true next sentence.
    """

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        c = self.config = config
        self.encoder = Encoder(config, rngs)
        linear = partial(Linear, std=c.init_std, bias=True, dtype=c.compute_dtype, rngs=rngs)
        self.pooler = linear(c.width, c.width, axes=("embed", "mlp"))
        self.transform = linear(c.width, c.width, axes=("embed", "mlp"))
        self.transform_norm = make_norm(config)
        self.output_bias = constant_param((c.vocab_size,), ("vocab",), 0.0)
        self.next_sentence = linear(c.width, 2, axes=("embed", "class"))

    def hidden(self, tokens_BxL, **kwargs) -> jax.Array:
        """Hidden states float32 `[B, L, D]`; keyword arguments as `Encoder`'s."""
        return self.encoder(tokens_BxL, **kwargs)

    def pooled(self, hidden_BxLxD: jax.Array) -> jax.Array:
        """`tanh(h_0 W + b)` of the first token, float32 `[B, D]`, for classification of the whole row."""
        return jnp.tanh(self.pooler(hidden_BxLxD[:, 0]))

    def token_logits(self, hidden: jax.Array) -> jax.Array:
        """Logits of the masked tokens, float32 `[..., V]`, from hidden states `[..., D]`.

        Only the masked positions need them: gather those first.
        """
        x = activate(self.transform(hidden), self.config.activation)
        # The norm needs whole vectors. Left to itself the partitioner splits them over `tensor`, and on data
        # x fsdp x tensor the gradient is then wrong.
        x = self.transform_norm(constrain(x, ("batch", *(None,) * (x.ndim - 1))))
        logits = tied_logits(x, self.encoder.embedding[...], self.config.compute_dtype)
        return logits + self.output_bias[...]

    def sentence_logits(self, hidden_BxLxD: jax.Array) -> jax.Array:
        """Logits of "next sentence" (0) and "random sentence" (1), float32 `[B, 2]`."""
        return self.next_sentence(self.pooled(hidden_BxLxD))

    def __call__(self, tokens_BxL, **kwargs) -> tuple[jax.Array, jax.Array]:
        """(token logits `[B, L, V]`, sentence logits `[B, 2]`); keyword arguments as `Encoder`'s."""
        hidden_BxLxD = self.hidden(tokens_BxL, **kwargs)
        return self.token_logits(hidden_BxLxD), self.sentence_logits(hidden_BxLxD)
