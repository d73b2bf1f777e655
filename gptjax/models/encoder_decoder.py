"""The Transformer of Vaswani et al. 2017 (arXiv 1706.03762): an encoder of the source, a decoder of the
target.

Legend: B batch, S source length, L target length, D model width, F feed-forward width, N layers, V
vocabulary, C head size, H heads, T cache slots.
"""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.config import configclass
from gptjax.models.attention import Attention, KVCache, causal_mask, segment_mask
from gptjax.models.block import MLP, Block, Derived, make_norm, run_stack, stack
from gptjax.models.layers import dropout, normal_param
from gptjax.models.matmul import tied_logits
from gptjax.models.sinusoids import sinusoids
from gptjax.ranges import BelowOne, Count, Positive
from gptjax.sharding.rules import between_sublayers, constrain, into_sublayer, out_of_sublayer


@configclass
class EncoderDecoderConfig(Derived):
    """Shape of an encoder-decoder; layer norms follow each residual sum, attention has no biases.

    Attributes:
        vocab_size: V, number of token ids of source and target together.
        context_length: longest source and longest target in tokens.
        width: D, even.
        layers: N of the encoder and N of the decoder.
        heads: H; they divide the width.
        mlp_width: F. None means 4 D.
        norm_epsilon: added to the variance; 1e-6 in tensor2tensor.
        activation: "relu", "gelu" (tanh form) or "gelu_erf".
        dropout: rate on the embeddings and on each sublayer's output.
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
    norm_epsilon: Positive = 1e-6
    activation: Literal["relu", "gelu", "gelu_erf"] = "relu"
    dropout: BelowOne = 0.0
    attention: Literal["reference", "xla", "cudnn"] = "reference"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    loop: Literal["scan", "unroll"] = "scan"
    remat: Literal["none", "dots", "full"] = "none"

    norm: ClassVar[str] = "layernorm"
    norm_place: ClassVar[str] = "post"
    bias: ClassVar[bool] = True
    attention_bias: ClassVar[bool] = False
    rotary_pairing: ClassVar[str] = "half"
    # None is Xavier's spread, which the paper leaves open.
    init_std: ClassVar[None] = None
    residual_init_std: ClassVar[None] = None

    def __post_init__(self):
        self.check_heads()
        if self.width % 2:
            raise ValueError(f"sinusoids come in pairs, but width = {self.width} is odd")


class CrossBlock(nnx.Module):
    """A layer of the decoder (section 3.1).

    `x = norm(x + attention(x)); x = norm(x + cross(x, memory)); x = norm(x + mlp(x))`.
    """

    def __init__(self, config: EncoderDecoderConfig, rngs: nnx.Rngs):
        self.dropout = config.dropout
        self.attention, self.attention_norm = Attention(config, rngs), make_norm(config)
        self.cross_attention, self.cross_norm = Attention(config, rngs), make_norm(config)
        self.mlp, self.mlp_norm = MLP(config, rngs), make_norm(config)

    def __call__(self, x_BxLxD, mask, memory, memory_mask, cache=None, slot=None, key=None):
        """One layer.

        Args:
            x_BxLxD: what the layer below gave.
            mask: bool, broadcastable to `[B, 1, L, L or T]`: the target tokens each target token sees.
            memory: the encoder's output `[B, S, D]`, or its keys and values from `Attention.remember`.
            memory_mask: bool, broadcastable to `[B, 1, L, S]`: the source tokens each target token sees.
            cache, slot: as in `Attention`.
            key: dropout key, or None.

        Returns:
            (float32 `[B, L, D]`, the extended cache or None).
        """
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        attended, cache = self.attention(into_sublayer(x_BxLxD), mask, cache=cache, slot=slot)
        attended = dropout(out_of_sublayer(attended), self.dropout, keys[0])
        x_BxLxD = self.attention_norm(x_BxLxD + attended)
        crossed, _ = self.cross_attention(into_sublayer(x_BxLxD), memory_mask, memory=memory)
        crossed = dropout(out_of_sublayer(crossed), self.dropout, keys[1])
        x_BxLxD = self.cross_norm(x_BxLxD + crossed)
        mapped = dropout(out_of_sublayer(self.mlp(into_sublayer(x_BxLxD))), self.dropout, keys[2])
        return between_sublayers(self.mlp_norm(x_BxLxD + mapped)), cache


class EncoderDecoder(nnx.Module):
    """Both stacks and the one matrix that embeds source and target and gives the logits (section 3.4)."""

    def __init__(self, config: EncoderDecoderConfig, rngs: nnx.Rngs):
        c = self.config = config
        self.embedding = normal_param(rngs, (c.vocab_size, c.width), ("vocab", "embed"), c.width**-0.5)
        self.encoder = stack(Block, c.layers, config, rngs)
        self.decoder = stack(CrossBlock, c.layers, config, rngs)

    def encode(self, sources_BxS, *, segment_ids=None, positions=None, key=None) -> jax.Array:
        """The memory the decoder reads, float32 `[B, S, D]`.

        Args:
            sources_BxS: int32 `[B, S]`, S at most the context length.
            segment_ids: int32 `[B, S]`, 0 for padding and 1 for the rest, or the ids of the pairs packed in a
                row; None is no padding.
            positions: int32 `[B, S]`; None counts from 0 in every row.
            key: dropout key; None switches dropout off.
        """
        keys, mask = self._keys(key), jnp.ones((1, 1) + (sources_BxS.shape[1],) * 2, bool)
        if segment_ids is not None:
            mask = segment_mask(segment_ids, segment_ids)

        def layer(block, x, layer_key, kind):
            return block(x, mask, key=layer_key)[0]

        x_BxSxD = self._embed(sources_BxS, positions, keys)
        return self._run(self.encoder, x_BxSxD, keys, layer)

    def hidden(
        self,
        targets_BxL,
        memory_BxSxD,
        *,
        segment_ids=None,
        source_segment_ids=None,
        positions=None,
        key=None,
    ) -> jax.Array:
        """Hidden states of the decoder, float32 `[B, L, D]`; position l sees targets 0 .. l and the source.

        Args:
            targets_BxL: int32 `[B, L]`, the target shifted right by one: it starts with the start token.
            memory_BxSxD: from `encode`.
            segment_ids: int32 `[B, L]`, as `encode`'s, of the targets.
            source_segment_ids: int32 `[B, S]`, as given to `encode`; a target reads its own segment's source.
            positions, key: as in `encode`.
        """
        keys, mask = self._keys(key), causal_mask(targets_BxL.shape[1], segment_ids)
        memory_mask = self._memory_mask(targets_BxL, memory_BxSxD, segment_ids, source_segment_ids)

        def layer(block, x, layer_key, kind):
            return block(x, mask, memory_BxSxD, memory_mask, key=layer_key)[0]

        x_BxLxD = self._embed(targets_BxL, positions, keys)
        return self._run(self.decoder, x_BxLxD, keys, layer)

    def output_matrix(self) -> tuple[jax.Array, bool]:
        """The output weights `[V, D]`, the embedding unscaled, and that they are transposed."""
        return self.embedding[...], True

    def logits(self, hidden_BxLxD: jax.Array) -> jax.Array:
        """Next-token logits, float32 `[B, L, V]`."""
        return tied_logits(hidden_BxLxD, self.embedding[...], self.config.compute_dtype)

    def __call__(
        self, sources_BxS, targets_BxL, *, source_segment_ids=None, segment_ids=None, key=None
    ) -> jax.Array:
        """Next-token logits of the targets, float32 `[B, L, V]`; arguments as in `encode` and `hidden`."""
        keys = (None, None) if key is None else jax.random.split(key)
        memory_BxSxD = self.encode(sources_BxS, segment_ids=source_segment_ids, key=keys[0])
        segments = {"segment_ids": segment_ids, "source_segment_ids": source_segment_ids}
        return self.logits(self.hidden(targets_BxL, memory_BxSxD, **segments, key=keys[1]))

    def remember(self, memory_BxSxD, layers) -> list[KVCache]:
        """Each decoder layer's keys and values of the memory, to be made once before a token loop.

        Args:
            memory_BxSxD: from `encode`.
            layers: the decoder's N layers' parameters, from `models.functional.unstack`.
        """
        block_def = nnx.split(self.decoder)[0]
        return [nnx.merge(block_def, p).cross_attention.remember(memory_BxSxD) for p in layers]

    def empty_caches(self, batch: int, slots: int) -> list[KVCache]:
        """One empty `KVCache` a decoder layer, in the compute precision."""
        c = self.config
        shape = batch, c.key_heads, slots, c.head_size, c.compute_dtype
        return [KVCache.empty(*shape) for _ in range(c.layers)]

    def extend(self, tokens_BxL, positions_BxL, mask, caches, slot, layers, memories, memory_mask):
        """Hidden states of new target positions that also see the cached ones; the rest as `Decoder.extend`.

        Args:
            tokens_BxL, positions_BxL: int32 `[B, L]`, the new target tokens and their positions.
            mask: bool, broadcastable to `[B, 1, L, T]`: which cache slots each new position sees.
            caches: one `KVCache` a layer.
            slot: int32 scalar, where the new keys go.
            layers: the decoder's N layers' parameters, from `models.functional.unstack`.
            memories: from `remember`.
            memory_mask: bool, broadcastable to `[B, 1, L, S]`: which source tokens each new position sees.

        Returns:
            (float32 `[B, L, D]`, the extended caches).
        """
        x_BxLxD, block_def, extended = self._embed(tokens_BxL, positions_BxL), nnx.split(self.decoder)[0], []
        for params, cache, memory in zip(layers, caches, memories, strict=True):
            block = nnx.merge(block_def, params)
            x_BxLxD, cache = block(x_BxLxD, mask, memory, memory_mask, cache=cache, slot=slot)
            extended.append(cache)
        return x_BxLxD, extended

    def _embed(self, tokens_BxL, positions, keys=None):
        c, length = self.config, tokens_BxL.shape[1]
        if length > c.context_length:
            raise ValueError(f"{length} tokens exceed the context length of {c.context_length}")
        if positions is None:
            positions = jnp.arange(length, dtype=jnp.int32)[None]
        # Whole along the width for the lookup, as in `Decoder`.
        x_BxLxD = constrain(self.embedding[...], ("vocab", None))[tokens_BxL] * c.width**0.5
        x_BxLxD = constrain(x_BxLxD + sinusoids(positions, c.width), ("batch", "length", None))
        x_BxLxD = between_sublayers(x_BxLxD)
        return dropout(x_BxLxD, c.dropout, None if keys is None else keys[-1])

    def _keys(self, key):
        return None if key is None else jax.random.split(key, self.config.layers + 1)

    def _run(self, blocks, x_BxLxD, keys, layer):
        c, layer_keys = self.config, None if keys is None else keys[:-1]
        return into_sublayer(run_stack(blocks, x_BxLxD, layer_keys, layer, loop=c.loop, remat=c.remat))

    @staticmethod
    def _memory_mask(targets_BxL, memory_BxSxD, segment_ids, source_segment_ids):
        if source_segment_ids is None:
            return jnp.ones((1, 1, targets_BxL.shape[1], memory_BxSxD.shape[1]), bool)
        if segment_ids is None:
            segment_ids = jnp.ones_like(targets_BxL)
        return segment_mask(segment_ids, source_segment_ids)
