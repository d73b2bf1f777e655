"""The decoder-only transformer: its configuration, embeddings and stack of blocks.

Legend: B batch, L length, D model width, F feed-forward width, N layers, V vocabulary, S cache slots.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.config import configclass
from gptjax.models.attention import KVCache, causal_mask
from gptjax.models.block import Block, Derived, make_norm, run_stack, stack
from gptjax.models.layers import dropout, normal_param
from gptjax.models.ring import CausalSegments
from gptjax.models.rotary import RotaryScaling, rotary_angles
from gptjax.ranges import BelowOne, Count, NonNegative, Positive
from gptjax.sharding.pipeline import BY_POSITION, WHOLE, from_microbatches, pipeline, to_microbatches
from gptjax.sharding.rules import axis_devices, between_sublayers, constrain, into_sublayer


@configclass
class DecoderConfig(Derived):
    """Shape and style of a decoder. `models/families.py` has the published ones.

    Attributes:
        vocab_size: V, number of token ids.
        context_length: longest sequence in tokens.
        width: D.
        layers: N.
        heads: query heads H; they divide the width.
        kv_heads: key/value heads K (grouped attention); they divide `heads`. None means `heads`.
        mlp_width: F. None means 4 D.
        norm: "layernorm" (GPT-2) or "rmsnorm" (LLaMA).
        norm_place: "pre" is before each sublayer and after the last block (GPT-2, LLaMA); "post" is after
            each residual sum and nowhere else (GPT-1).
        norm_epsilon: added to the variance.
        positions: "learned" table or "rotary".
        rotary_theta, rotary_pairing: see `models/rotary.py`.
        rotary_scaling: of the frequencies, as in Llama 3.1, or None.
        activation: "gelu" (tanh form), "gelu_erf" (exact), "relu", or the gated "swiglu".
        bias: whether linear maps and layer norms have biases.
        tied: whether the output matrix is the token embedding.
        dropout: rate on the embeddings and on each sublayer's output.
        init_std: standard deviation of the weights; in a pre-norm model maps that end in the residual stream
            are divided by sqrt(2 N) (GPT-2, section 2.3) and learned positions by 2 (its code).
        attention: "reference", "xla" or "cudnn".
        attention_band: W; in every second layer a token sees the last W tokens, its own included; or None.
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
    norm_place: Literal["pre", "post"] = "pre"
    norm_epsilon: Positive = 1e-5
    positions: Literal["learned", "rotary"] = "learned"
    rotary_theta: Positive = 10_000.0
    rotary_pairing: Literal["half", "interleaved"] = "half"
    rotary_scaling: RotaryScaling | None = None
    activation: Literal["gelu", "gelu_erf", "relu", "swiglu"] = "gelu"
    bias: bool = True
    tied: bool = True
    dropout: BelowOne = 0.0
    init_std: NonNegative = 0.02
    attention: Literal["reference", "xla", "cudnn"] = "reference"
    attention_band: Count | None = None
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    loop: Literal["scan", "unroll"] = "scan"
    remat: Literal["none", "dots", "full"] = "none"

    def __post_init__(self):
        self.check_heads()
        if self.heads % self.key_heads:
            raise ValueError(
                f"kv_heads = {self.kv_heads} does not divide heads = {self.heads}: use a divisor of heads"
            )
        if self.positions == "rotary" and self.head_size % 2:
            raise ValueError(f"rotary positions need an even head size, but width / heads = {self.head_size}")
        if self.rotary_scaling is not None and self.positions != "rotary":
            raise ValueError(f"rotary_scaling needs rotary positions, but positions = {self.positions!r}")
        if self.attention_band is not None and self.layers % 2:
            raise ValueError(
                f"attention_band alternates dense and banded layers, so layers = {self.layers} must be even"
            )

    @property
    def key_heads(self) -> int:
        """K. Derived, so that a config with other `heads` replaced does not keep the old number."""
        return self.heads if self.kv_heads is None else self.kv_heads

    def band(self, layer: int) -> int | None:
        """W of a layer, counted from 0: dense and banded layers alternate, the first is dense."""
        return self.attention_band if layer % 2 else None

    @property
    def attention_bias(self) -> bool:
        """Whether the linear maps of attention have biases: as all others."""
        return self.bias

    @property
    def residual_init_std(self) -> float:
        """Standard deviation of the maps that end in the residual stream, which post-norm does not have."""
        return self.init_std if self.norm_place == "post" else self.init_std / (2 * self.layers) ** 0.5


class Decoder(nnx.Module):
    """Embeddings, N blocks with stacked parameters `[N, ...]`, and in a pre-norm model a final norm."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        c = self.config = config
        self.embedding = normal_param(rngs, (c.vocab_size, c.width), ("vocab", "embed"), c.init_std)
        position_std = c.init_std / 2 if c.norm_place == "pre" else c.init_std
        table = (c.context_length, c.width), ("position", "embed"), position_std
        self.positions = normal_param(rngs, *table) if c.positions == "learned" else None
        self.blocks = stack(Block, c.layers, config, rngs)
        self.norm = make_norm(config) if c.norm_place == "pre" else None

    def __call__(self, tokens_BxL, *, segment_ids=None, positions=None, key=None, microbatches=1):
        """Hidden states after the last norm.

        Args:
            tokens_BxL: int32 `[B, L]`, L at most the context length.
            segment_ids: int32 `[B, L]`; tokens see only their own segment. None: the row is one document.
            positions: int32 `[B, L]`; None counts from 0 in every row.
            key: dropout key; None switches dropout off.
            microbatches: parts that the rows are cut into where the layers are a pipeline.

        Returns:
            float32 `[B, L, D]`.
        """
        c, length = self.config, tokens_BxL.shape[1]
        if length > c.context_length:
            raise ValueError(f"{length} tokens exceed the context length of {c.context_length}")
        if positions is None:
            positions = jnp.arange(length, dtype=jnp.int32)[None]
        keys = None if key is None else jax.random.split(key, c.layers + 1)
        x_BxLxD = self._embed(tokens_BxL, positions)
        x_BxLxD = dropout(x_BxLxD, c.dropout, None if keys is None else keys[-1])
        if axis_devices("sequence") == 1:
            mask = causal_mask(length, segment_ids)
        else:
            mask = CausalSegments(jnp.zeros_like(tokens_BxL) if segment_ids is None else segment_ids)
        rotation = self._rotation(positions)
        context = mask, rotation, None if keys is None else keys[:-1]
        if axis_devices("stage") == 1:
            return self._last_norm(self._run(self.blocks, x_BxLxD, context))
        return self._last_norm(self._run_pipeline(x_BxLxD, context, microbatches))

    def _run(self, blocks, x_BxLxD, context):
        c, (mask, rotation, layer_keys) = self.config, context

        def layer(block, x, layer_key, kind):
            return block(x, mask, rotation, key=layer_key, band=c.band(kind))[0]

        period = 1 if c.attention_band is None else 2
        return run_stack(blocks, x_BxLxD, layer_keys, layer, loop=c.loop, remat=c.remat, period=period)

    def _run_pipeline(self, x_BxLxD, context, microbatches):
        block_def, stacked = nnx.split(self.blocks)
        mask, rotation, keys_N = context
        keys_MxN = None
        if keys_N is not None:  # every micro-batch draws its own
            fold = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))
            keys_MxN = fold(keys_N, jnp.arange(microbatches))

        def run_layers(stacked, x, beside, stage):
            mask, rotation, keys = beside
            if keys is not None:  # those of its own layers, folded with its part of the positions
                count = len(jax.tree.leaves(stacked)[0])
                keys = jax.lax.dynamic_slice_in_dim(keys, stage * count, count)
                keys = jax.vmap(jax.random.fold_in, (0, None))(keys, jax.lax.axis_index("sequence"))
            return self._run(nnx.merge(block_def, stacked), x, (mask, rotation, keys))

        x, mask, rotation = (
            jax.tree.map(lambda a: to_microbatches(a, microbatches), rows)
            for rows in (x_BxLxD, mask, rotation)
        )
        specs = (BY_POSITION if isinstance(mask, CausalSegments) else WHOLE, BY_POSITION, WHOLE)
        return from_microbatches(pipeline(run_layers, stacked, x, (mask, rotation, keys_MxN), specs))

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
        for i, (params, cache) in enumerate(zip(layers, caches, strict=True)):
            block, band = nnx.merge(block_def, params), self.config.band(i)
            x_BxLxD, cache = block(x_BxLxD, mask, rotation, cache, slot, band=band)
            extended.append(cache)
        return self._last_norm(x_BxLxD), extended

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
        return between_sublayers(constrain(x_BxLxD, ("batch", "length", None)))

    def _rotation(self, positions_BxL):
        c = self.config
        if c.positions != "rotary":
            return None
        return rotary_angles(positions_BxL, c.head_size, c.rotary_theta, c.rotary_scaling)

    def _last_norm(self, x_BxLxD):
        return into_sublayer(x_BxLxD if self.norm is None else self.norm(x_BxLxD))
