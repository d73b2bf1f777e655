"""The decoder-only transformer: its configuration, one block, the stack.

Legend: B batch, L length, D model width, F feed-forward width, N layers, V vocabulary, S cache slots.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.config import configclass
from gptjax.models.attention import Attention, KVCache, causal_mask
from gptjax.models.layers import LayerNorm, Linear, RMSNorm, dropout, normal_param
from gptjax.models.rotary import rotary_angles
from gptjax.ranges import BelowOne, Count, NonNegative, Positive
from gptjax.sharding.rules import constrain


@configclass
class DecoderConfig:
    """Shape and style of a decoder. `models/families.py` has the published ones.

    Attributes:
        vocab_size: V, number of token ids.
        context_length: longest sequence in tokens.
        width: D.
        layers: N.
        heads: query heads H; they divide the width.
        kv_heads: key/value heads K (grouped attention); they divide `heads`. None means `heads`.
        mlp_width: F. None means 4 D.
        norm: "layernorm" (GPT-2) or "rmsnorm" (LLaMA), before each sublayer and after the last block.
        norm_epsilon: added to the variance.
        positions: "learned" table or "rotary".
        rotary_theta, rotary_pairing: see `models/rotary.py`.
        activation: "gelu" (tanh form), "relu", or the gated "swiglu".
        bias: whether linear maps and layer norms have biases.
        tied: whether the output matrix is the token embedding.
        dropout: rate on the embeddings and on each sublayer's output.
        init_std: standard deviation of the weights; maps that end in the residual stream are divided
            by sqrt(2 N) (GPT-2, section 2.3).
        attention: "reference", "xla" or "cudnn".
        compute_dtype: precision of the operands of matrix products.
        loop: "scan" compiles one block for all layers; "unroll" compiles each, which runs faster on CPU.
        remat: what the backward pass computes again: "none", "dots" (keeps matrix products), "full".
    """

    vocab_size: Count
    context_length: Count
    width: Count
    layers: Count
    heads: Count
    kv_heads: Count | None = None
    mlp_width: Count | None = None
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_epsilon: Positive = 1e-5
    positions: Literal["learned", "rotary"] = "learned"
    rotary_theta: Positive = 10_000.0
    rotary_pairing: Literal["half", "interleaved"] = "half"
    activation: Literal["gelu", "relu", "swiglu"] = "gelu"
    bias: bool = True
    tied: bool = True
    dropout: BelowOne = 0.0
    init_std: NonNegative = 0.02
    attention: Literal["reference", "xla", "cudnn"] = "reference"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    loop: Literal["scan", "unroll"] = "scan"
    remat: Literal["none", "dots", "full"] = "none"

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide width = {self.width}")
        if self.heads % self.key_heads:
            raise ValueError(f"kv_heads = {self.kv_heads} does not divide heads = {self.heads}")
        if self.positions == "rotary" and self.head_size % 2:
            raise ValueError(f"rotary positions need an even head size, but width / heads = {self.head_size}")

    @property
    def head_size(self) -> int:
        """C, channels of one head."""
        return self.width // self.heads

    @property
    def key_heads(self) -> int:
        """K. Derived, so that a config with other `heads` replaced does not keep the old number."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def inner_width(self) -> int:
        """F, derived for the same reason."""
        return 4 * self.width if self.mlp_width is None else self.mlp_width

    @property
    def residual_init_std(self) -> float:
        """Standard deviation of the maps that end in the residual stream."""
        return self.init_std / (2 * self.layers) ** 0.5


def make_norm(config: DecoderConfig) -> nnx.Module:
    """The normalisation the config names, over the model width."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.width, config.norm_epsilon)
    return LayerNorm(config.width, config.norm_epsilon, bias=config.bias)


class MLP(nnx.Module):
    """`down(activation(up(x)))`, or for SwiGLU `down(silu(gate(x)) * up(x))` (Shazeer 2020)."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        c = config
        self.activation = c.activation
        linear = partial(Linear, bias=c.bias, dtype=c.compute_dtype, rngs=rngs)
        enter = partial(linear, c.width, c.inner_width, axes=("embed", "mlp"), std=c.init_std)
        self.up = enter()
        self.gate = enter() if c.activation == "swiglu" else None
        self.down = linear(c.inner_width, c.width, axes=("mlp", "embed"), std=c.residual_init_std)

    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        h_BxLxF = self.up(x_BxLxD)
        if self.gate is not None:
            h_BxLxF = jax.nn.silu(self.gate(x_BxLxD)) * h_BxLxF
        elif self.activation == "gelu":
            h_BxLxF = jax.nn.gelu(h_BxLxF, approximate=True)
        else:
            h_BxLxF = jax.nn.relu(h_BxLxF)
        return self.down(h_BxLxF)


class Block(nnx.Module):
    """Pre-norm block: `x += attention(norm(x)); x += mlp(norm(x))`."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.dropout = config.dropout
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, rngs)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config, rngs)

    def __call__(self, x_BxLxD, mask, rotation=None, cache=None, slot=None, key=None):
        """One layer; returns (float32 `[B, L, D]`, the extended cache or None)."""
        keys = (None, None) if key is None else jax.random.split(key)
        attended, cache = self.attention(self.attention_norm(x_BxLxD), mask, rotation, cache, slot)
        x_BxLxD = x_BxLxD + dropout(attended, self.dropout, keys[0])
        x_BxLxD = x_BxLxD + dropout(self.mlp(self.mlp_norm(x_BxLxD)), self.dropout, keys[1])
        return constrain(x_BxLxD, ("batch", "length", None)), cache


class Decoder(nnx.Module):
    """Embeddings, N blocks with stacked parameters `[N, ...]`, final norm."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        c = self.config = config
        self.embedding = normal_param(rngs, (c.vocab_size, c.width), ("vocab", "embed"), c.init_std)
        table = (c.context_length, c.width), ("position", "embed"), c.init_std / 2
        self.positions = normal_param(rngs, *table) if c.positions == "learned" else None
        layer_keys = jax.random.split(rngs.params(), c.layers)
        self.blocks = nnx.vmap(lambda key: Block(config, nnx.Rngs(params=key)))(layer_keys)
        self.norm = make_norm(config)

    def __call__(self, tokens_BxL, *, segment_ids=None, positions=None, key=None):
        """Hidden states after the final norm.

        Args:
            tokens_BxL: int32 `[B, L]`, L at most the context length.
            segment_ids: int32 `[B, L]`; tokens see only their own segment. None: the row is one document.
            positions: int32 `[B, L]`; None counts from 0 in every row.
            key: dropout key; None switches dropout off.

        Returns:
            float32 `[B, L, D]`.
        """
        length = tokens_BxL.shape[1]
        if length > self.config.context_length:
            raise ValueError(f"{length} tokens exceed the context length of {self.config.context_length}")
        if positions is None:
            positions = jnp.arange(length, dtype=jnp.int32)[None]
        keys = None if key is None else jax.random.split(key, self.config.layers + 1)
        x_BxLxD = self._embed(tokens_BxL, positions)
        x_BxLxD = dropout(x_BxLxD, self.config.dropout, None if keys is None else keys[-1])
        mask, rotation = causal_mask(length, segment_ids), self._rotation(positions)
        block_def, stacked = nnx.split(self.blocks)

        def layer(x, params_and_key):
            params, layer_key = params_and_key
            return nnx.merge(block_def, params)(x, mask, rotation, key=layer_key)[0], None

        layer = _rematerialise(layer, self.config.remat)
        layer_keys = None if keys is None else keys[:-1]
        if self.config.loop == "scan":
            x_BxLxD, _ = jax.lax.scan(layer, x_BxLxD, (stacked, layer_keys))
        else:
            for i in range(self.config.layers):
                x_BxLxD, _ = layer(x_BxLxD, jax.tree.map(lambda a, i=i: a[i], (stacked, layer_keys)))
        return self.norm(x_BxLxD)

    def extend(self, tokens_BxL, positions_BxL, mask, caches, slot, layers):
        """Hidden states of new positions that also see the cached ones.

        Args:
            tokens_BxL, positions_BxL: int32 `[B, L]`, the new tokens and their positions.
            mask: bool, broadcastable to `[B, 1, L, S]`: which cache slots each new position sees.
            caches: one `KVCache` a layer.
            slot: int32 scalar, where the new keys go.
            layers: the N layers' parameters, from `models.functional.layer_parameters`.

        Returns:
            (float32 `[B, L, D]`, the extended caches).
        """
        x_BxLxD = self._embed(tokens_BxL, positions_BxL)
        rotation, block_def = self._rotation(positions_BxL), nnx.split(self.blocks)[0]
        extended = []
        for params, cache in zip(layers, caches, strict=True):
            x_BxLxD, cache = nnx.merge(block_def, params)(x_BxLxD, mask, rotation, cache, slot)
            extended.append(cache)
        return self.norm(x_BxLxD), extended

    def empty_caches(self, batch: int, slots: int) -> list[KVCache]:
        """One empty `KVCache` a layer, in the compute precision."""
        c = self.config
        return [
            KVCache.empty(batch, c.key_heads, slots, c.head_size, c.compute_dtype) for _ in range(c.layers)
        ]

    def _embed(self, tokens_BxL, positions_BxL):
        # Rows are gathered from a table that is whole along the width: batch and width share the mesh axis
        # `fsdp`, and a lookup can be split along one of them only.
        x_BxLxD = constrain(self.embedding[...], ("vocab", None))[tokens_BxL]
        if self.positions is not None:
            x_BxLxD = x_BxLxD + self.positions[...][positions_BxL]
        return constrain(x_BxLxD, ("batch", "length", None))

    def _rotation(self, positions_BxL):
        if self.config.positions != "rotary":
            return None
        return rotary_angles(positions_BxL, self.config.head_size, self.config.rotary_theta)


def _rematerialise(layer, policy):
    if policy == "full":
        return jax.checkpoint(layer)
    if policy == "dots":
        return jax.checkpoint(layer, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    return layer
