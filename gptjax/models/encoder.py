"""The bidirectional encoder of BERT (Devlin et al. 2018, arXiv 1810.04805, section 3).

Legend: B batch, L length, D model width, F feed-forward width, N layers, V vocabulary, T token types.
"""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.config import configclass
from gptjax.models.attention import segment_mask
from gptjax.models.block import Block, Derived, make_norm, run_stack, stack
from gptjax.models.layers import dropout, normal_param
from gptjax.ranges import BelowOne, Count, NonNegative, Positive
from gptjax.sharding.rules import between_sublayers, constrain, into_sublayer


@configclass
class EncoderConfig(Derived):
    """Shape and style of an encoder; norms are layer norms after each residual sum, linear maps have biases.

    Attributes:
        vocab_size: V, number of token ids.
        context_length: longest sequence in tokens.
        width: D.
        layers: N.
        heads: H; they divide the width.
        mlp_width: F. None means 4 D.
        token_types: T, segments whose tokens are told apart: 2 in BERT, sentence A and sentence B.
        norm_epsilon: added to the variance.
        activation: "gelu" (tanh form, Google's code), "gelu_erf" (exact, Hugging Face's), or "relu".
        dropout: rate on the embeddings and on each sublayer's output.
        init_std: standard deviation of the weights.
        attention: "reference", "xla" or "cudnn".
        compute_dtype: precision of the operands of matrix products.
        loop, remat: as in `DecoderConfig`.
    """

    vocab_size: Count
    context_length: Count
    width: Count
    layers: Count
    heads: Count
    mlp_width: Count | None = None
    token_types: Count = 2
    norm_epsilon: Positive = 1e-12
    activation: Literal["gelu", "gelu_erf", "relu"] = "gelu"
    dropout: BelowOne = 0.0
    init_std: NonNegative = 0.02
    attention: Literal["reference", "xla", "cudnn"] = "reference"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    loop: Literal["scan", "unroll"] = "scan"
    remat: Literal["none", "dots", "full"] = "none"

    norm: ClassVar[str] = "layernorm"
    norm_place: ClassVar[str] = "post"
    bias: ClassVar[bool] = True
    attention_bias: ClassVar[bool] = True
    rotary_pairing: ClassVar[str] = "half"

    def __post_init__(self):
        self.check_heads()

    @property
    def residual_init_std(self) -> float:
        """Standard deviation of the maps that end in the residual stream, which post-norm does not have."""
        return self.init_std


class Encoder(nnx.Module):
    """`norm(token + position + token type)`, then N post-norm blocks with stacked parameters `[N, ...]`."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        c = self.config = config
        self.embedding = normal_param(rngs, (c.vocab_size, c.width), ("vocab", "embed"), c.init_std)
        self.positions = normal_param(rngs, (c.context_length, c.width), ("position", "embed"), c.init_std)
        self.token_types = normal_param(rngs, (c.token_types, c.width), ("token_type", "embed"), c.init_std)
        self.embedding_norm = make_norm(config)
        self.blocks = stack(Block, c.layers, config, rngs)

    def __call__(self, tokens_BxL, *, token_types=None, segment_ids=None, positions=None, key=None):
        """Hidden states of the last block; every token sees all of its segment, before it and after.

        Args:
            tokens_BxL: int32 `[B, L]`, L at most the context length.
            token_types: int32 `[B, L]`, 0 for sentence A with its [CLS] and [SEP], 1 for B; None is all 0.
            segment_ids: int32 `[B, L]`, 0 for padding and 1 for the rest, or the ids of the documents packed
                in a row; None is no padding.
            positions: int32 `[B, L]`; None counts from 0 in every row.
            key: dropout key; None switches dropout off.

        Returns:
            float32 `[B, L, D]`; of padding it is finite and means nothing.
        """
        c, length = self.config, tokens_BxL.shape[1]
        if length > c.context_length:
            raise ValueError(f"{length} tokens exceed the context length of {c.context_length}")
        keys = None if key is None else jax.random.split(key, c.layers + 1)
        x_BxLxD = self._embed(tokens_BxL, token_types, positions)
        x_BxLxD = dropout(x_BxLxD, c.dropout, None if keys is None else keys[-1])
        mask = jnp.ones((1, 1, length, length), bool)
        if segment_ids is not None:
            mask = segment_mask(segment_ids, segment_ids)

        def layer(block, x, layer_key, kind):
            return block(x, mask, key=layer_key)[0]

        layer_keys = None if keys is None else keys[:-1]
        x_BxLxD = run_stack(self.blocks, x_BxLxD, layer_keys, layer, loop=c.loop, remat=c.remat)
        return into_sublayer(x_BxLxD)

    def _embed(self, tokens_BxL, token_types, positions):
        if positions is None:
            positions = jnp.arange(tokens_BxL.shape[1], dtype=jnp.int32)[None]
        if token_types is None:
            token_types = jnp.zeros_like(tokens_BxL)
        # Whole along the width for the lookup, as in `Decoder`.
        x_BxLxD = constrain(self.embedding[...], ("vocab", None))[tokens_BxL]
        x_BxLxD = x_BxLxD + self.positions[...][positions] + self.token_types[...][token_types]
        return self.embedding_norm(between_sublayers(constrain(x_BxLxD, ("batch", "length", None))))
