"""A classifier over a pretrained trunk: BERT's, read at [CLS], or GPT-1's, read at its extract token.

Legend: B examples, S sequences of an example, L length, D model width, K classes.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.config import configclass
from gptjax.models.encoder import Encoder, EncoderConfig
from gptjax.models.heads import LanguageModel
from gptjax.models.layers import Linear, dropout
from gptjax.models.transformer import DecoderConfig
from gptjax.ranges import Count

HEAD_STD = 0.02


@configclass
class ClassifierConfig:
    """A trunk and what it decides.

    Attributes:
        trunk: of BERT's kind or of GPT's.
        classes: K of an example; None for a choice, where each of its sequences ends in an answer.
    """

    trunk: EncoderConfig | DecoderConfig
    classes: Count | None

    @property
    def context_length(self) -> int:
        """Longest sequence in tokens."""
        return self.trunk.context_length


class Classifier(nnx.Module):
    """The four uses of one linear map W (Radford et al. 2018, section 3.3 and figure 1).

    Classification and entailment have one sequence an example, similarity its two orders, a choice one for
    each answer. With r_s = tanh(h_0 W' + b') of BERT's first token, or h of GPT's extract token:

        classes: logits = (r_1 + ... + r_S) W + b       choice: logit_s = r_s w + b
    """

    def __init__(self, config: ClassifierConfig, rngs: nnx.Rngs):
        trunk, self.config = config.trunk, config
        linear = {"std": HEAD_STD, "bias": True, "dtype": trunk.compute_dtype, "rngs": rngs}
        if isinstance(trunk, EncoderConfig):
            self.encoder, self.language = Encoder(trunk, rngs), None
            self.pooler = Linear(trunk.width, trunk.width, axes=("embed", "mlp"), **linear)
        else:
            self.encoder, self.language, self.pooler = None, LanguageModel(trunk, rngs), None
        self.head = Linear(trunk.width, config.classes or 1, axes=("embed", "class"), **linear)

    def hidden(self, tokens_BxSxL, ends_BxS, *, token_types=None, key=None) -> jax.Array:
        """Hidden states of every sequence, float32 `[B, S, L, D]`; arguments as `__call__`'s."""
        B, S, L = tokens_BxSxL.shape
        tokens = tokens_BxSxL.reshape(B * S, L)
        if self.encoder is None:  # a causal model reads nothing of the padding, which comes last
            return self.language.hidden(tokens, key=key).reshape(B, S, L, -1)
        real = (jnp.arange(L) <= ends_BxS.reshape(B * S, 1)).astype(jnp.int32)
        types = None if token_types is None else token_types.reshape(B * S, L)
        return self.encoder(tokens, token_types=types, segment_ids=real, key=key).reshape(B, S, L, -1)

    def logits(self, hidden_BxSxLxD, ends_BxS, *, key=None) -> jax.Array:
        """Logits of the classes `[B, K]`, or of the answers `[B, S]`, float32."""
        if self.encoder is None:
            read_BxSxD = jnp.take_along_axis(hidden_BxSxLxD, ends_BxS[..., None, None], axis=2)[:, :, 0]
        else:
            read_BxSxD = jnp.tanh(self.pooler(hidden_BxSxLxD[:, :, 0]))
        if self.config.classes is None:
            return self.head(dropout(read_BxSxD, self.config.trunk.dropout, key))[..., 0]
        return self.head(dropout(read_BxSxD.sum(1), self.config.trunk.dropout, key))

    def __call__(self, tokens_BxSxL, ends_BxS, *, token_types=None, key=None):
        """(logits, hidden states `[B, S, L, D]`).

        Args:
            tokens_BxSxL: int32 `[B, S, L]`.
            ends_BxS: int32 `[B, S]`, the place of each sequence's last token, GPT's extract token.
            token_types: int32 `[B, S, L]`, for BERT; None is all 0.
            key: dropout key; None switches dropout off.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        hidden = self.hidden(tokens_BxSxL, ends_BxS, token_types=token_types, key=keys[0])
        return self.logits(hidden, ends_BxS, key=keys[1]), hidden
