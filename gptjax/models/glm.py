"""GLM: one stack of blocks that reads a corrupted text both ways and writes its blanks from left to right.

GLM (Du et al. 2021, arXiv 2103.10360), GLM-130B (Zeng et al. 2022, arXiv 2210.02414) and ChatGLM-6B differ in
positions, norms and feed-forward network. `data/infilling.py` makes their rows.

Legend: B batch, L length, D model width, F feed-forward width, N layers, V vocabulary, S cache slots.
"""

from typing import ClassVar, Literal

import jax
from flax import nnx

from gptjax.config import configclass
from gptjax.models.attention import KVCache, prefix_mask
from gptjax.models.block import Block, Derived, make_norm, run_stack, stack
from gptjax.models.layers import dropout, normal_param
from gptjax.models.matmul import tied_logits
from gptjax.models.rotary import rotary_angles, rotary_angles_2d
from gptjax.ranges import AboveZero, BelowOne, Count, NonNegative, Positive
from gptjax.sharding.rules import between_sublayers, constrain, into_sublayer


@configclass
class GLMConfig(Derived):
    """Shape and style of a GLM; linear maps and layer norms have biases, the output matrix is the embedding.

    Attributes:
        vocab_size: V, number of token ids, those that mark blanks included.
        context_length: longest sequence in tokens, Part A and Part B together.
        width: D.
        layers: N.
        heads: H; they divide the width.
        mlp_width: F. None means 4 D.
        positions: how a token's two positions enter. "learned" adds a row of a table for each (GLM), "rotary"
            rotates by their sum (GLM-130B), "rotary_2d" rotates half of each head's channels by the one, half
            by the other (ChatGLM-6B).
        deep_norm: False is a norm before each sublayer (GLM); True is DeepNorm, `norm(sqrt(2 N) x + f(x))`,
            after a norm of the embeddings (GLM-130B, ChatGLM-6B).
        norm_epsilon: added to the variance.
        activation: "gelu" (tanh form) or the gated "geglu".
        embedding_gradient: what the gradient of the embedded tokens is multiplied with (GLM-130B: 0.1).
        dropout: rate on the embeddings and on each sublayer's output.
        embedding_std: standard deviation of the embeddings and, without DeepNorm, of the weights, where maps
            that end in the residual stream are divided by sqrt(2 N). With DeepNorm weights have Xavier's.
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
    positions: Literal["learned", "rotary", "rotary_2d"] = "learned"
    deep_norm: bool = False
    norm_epsilon: Positive = 1e-5
    activation: Literal["gelu", "geglu"] = "gelu"
    embedding_gradient: AboveZero = 1.0
    dropout: BelowOne = 0.0
    embedding_std: NonNegative = 0.02
    attention: Literal["reference", "xla", "cudnn"] = "reference"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    loop: Literal["scan", "unroll"] = "scan"
    remat: Literal["none", "dots", "full"] = "none"

    norm: ClassVar[str] = "layernorm"
    bias: ClassVar[bool] = True
    attention_bias: ClassVar[bool] = True
    tied: ClassVar[bool] = True

    def __post_init__(self):
        self.check_heads()
        parts = {"learned": 1, "rotary": 2, "rotary_2d": 4}[self.positions]
        if self.head_size % parts:
            raise ValueError(
                f"positions = {self.positions!r} need a head size that is a multiple of {parts}, but "
                f"width / heads = {self.head_size}"
            )

    @property
    def norm_place(self) -> str:
        """Where a block's norms stand: DeepNorm is post-norm with a scaled residual stream."""
        return "post" if self.deep_norm else "pre"

    @property
    def residual_scale(self) -> float:
        """alpha of DeepNorm, `(2 N)^(1/2)` (GLM-130B, section 2.1)."""
        return (2 * self.layers) ** 0.5 if self.deep_norm else 1.0

    @property
    def deep_gain(self) -> float:
        """Xavier's gain of values, attention outputs and feed-forward maps, `(2 N)^(-1/2)` (section 2.1)."""
        return (2 * self.layers) ** -0.5 if self.deep_norm else 1.0

    @property
    def init_std(self) -> float | None:
        """Standard deviation of the weights; None is Xavier's."""
        return None if self.deep_norm else self.embedding_std

    @property
    def residual_init_std(self) -> float | None:
        """Standard deviation of the maps that end in the residual stream; None is Xavier's."""
        return None if self.deep_norm else self.embedding_std / (2 * self.layers) ** 0.5

    @property
    def rotary_pairing(self) -> str:
        """Which channels rotate together, see `models/rotary.py`."""
        return "quarters" if self.positions == "rotary_2d" else "half"


def shrink_gradient(x: jax.Array, factor: float) -> jax.Array:
    """x, whose gradient is multiplied with `factor`: `factor x + stop_gradient((1 - factor) x)`.

    GLM-130B's embedding gradient shrink, against spikes of the loss (Zeng et al. 2022, section 3).
    """
    return x if factor == 1.0 else factor * x + jax.lax.stop_gradient((1 - factor) * x)


class GLM(nnx.Module):
    """Embeddings, N blocks with stacked parameters `[N, ...]`, a norm, and the tied output matrix.

    Every token has two positions. The first is its index in Part A, the corrupted text; a token of Part B has
    that of the mask whose blank it fills. The second is 0 in Part A and counts from 1 within a blank, so that
    it also says which part a token belongs to: all tokens see Part A, and Part B is causal.

    With DeepNorm the last block's norm is the model's last, and there is one on the embeddings. That is, norm
    by norm, the released code of GLM-130B and ChatGLM-6B: `a = norm(x); h = alpha a + attention(a); m =
    norm(h); x = alpha m + mlp(m)` with a norm at the end.
    """

    def __init__(self, config: GLMConfig, rngs: nnx.Rngs):
        c = self.config = config
        self.embedding = normal_param(rngs, (c.vocab_size, c.width), ("vocab", "embed"), c.embedding_std)
        table = (c.context_length, c.width), ("position", "embed"), c.embedding_std
        learned = c.positions == "learned"
        self.positions = normal_param(rngs, *table) if learned else None
        self.block_positions = normal_param(rngs, *table) if learned else None
        self.blocks = stack(Block, c.layers, config, rngs)
        self.norm = make_norm(config)

    def hidden(self, tokens_BxL, *, positions, segment_ids=None, key=None) -> jax.Array:
        """Hidden states after the last norm.

        Args:
            tokens_BxL: int32 `[B, L]`, Part A and then Part B, L at most the context length.
            positions: int32 `[B, L, 2]`, see the class.
            segment_ids: int32 `[B, L]`; tokens see only their own segment. None: the row is one example.
            key: dropout key; None switches dropout off.

        Returns:
            float32 `[B, L, D]`.
        """
        c, length = self.config, tokens_BxL.shape[1]
        if length > c.context_length:
            raise ValueError(f"{length} tokens exceed the context length of {c.context_length}")
        keys = None if key is None else jax.random.split(key, c.layers + 1)
        x_BxLxD = self._embed(tokens_BxL, positions)
        x_BxLxD = dropout(x_BxLxD, c.dropout, None if keys is None else keys[-1])
        mask, rotation = prefix_mask(positions[..., 1] == 0, segment_ids), self._rotation(positions)

        def layer(block, x, layer_key, kind):
            return block(x, mask, rotation, key=layer_key)[0]

        layer_keys = None if keys is None else keys[:-1]
        return self._last_norm(run_stack(self.blocks, x_BxLxD, layer_keys, layer, loop=c.loop, remat=c.remat))

    def output_matrix(self) -> tuple[jax.Array, bool]:
        """The output weights `[V, D]`, the embedding, and that they are transposed."""
        return self.embedding[...], True

    def logits(self, hidden_BxLxD: jax.Array) -> jax.Array:
        """Next-token logits, float32 `[B, L, V]`; those of Part B mean something."""
        return tied_logits(hidden_BxLxD, self.embedding[...], self.config.compute_dtype)

    def __call__(self, tokens_BxL, **kwargs) -> jax.Array:
        """Next-token logits, float32 `[B, L, V]`; keyword arguments as `hidden`'s."""
        return self.logits(self.hidden(tokens_BxL, **kwargs))

    def extend(self, tokens_BxL, positions_BxLx2, mask, caches, slot, layers):
        """Hidden states of new tokens that also see the cached ones.

        Args:
            tokens_BxL: int32 `[B, L]`, the new tokens.
            positions_BxLx2: int32 `[B, L, 2]`, their positions.
            mask: bool, broadcastable to `[B, 1, L, S]`: which cache slots each new token sees.
            caches: one `KVCache` a layer.
            slot: int32 scalar, where the new keys go.
            layers: the N layers' parameters, from `models.functional.unstack`.

        Returns:
            (float32 `[B, L, D]`, the extended caches).
        """
        x_BxLxD, rotation = self._embed(tokens_BxL, positions_BxLx2), self._rotation(positions_BxLx2)
        block_def, extended = nnx.split(self.blocks)[0], []
        for params, cache in zip(layers, caches, strict=True):
            x_BxLxD, cache = nnx.merge(block_def, params)(x_BxLxD, mask, rotation, cache, slot)
            extended.append(cache)
        return self._last_norm(x_BxLxD), extended

    def empty_caches(self, batch: int, slots: int) -> list[KVCache]:
        """One empty `KVCache` a layer, in the compute precision."""
        c = self.config
        shape = batch, c.key_heads, slots, c.head_size, c.compute_dtype
        return [KVCache.empty(*shape) for _ in range(c.layers)]

    def _embed(self, tokens_BxL, positions_BxLx2):
        # Whole along the width for the lookup, as in `Decoder`.
        x_BxLxD = constrain(self.embedding[...], ("vocab", None))[tokens_BxL]
        x_BxLxD = shrink_gradient(x_BxLxD, self.config.embedding_gradient)
        if self.positions is not None:
            x_BxLxD = x_BxLxD + self.positions[...][positions_BxLx2[..., 0]]
            x_BxLxD = x_BxLxD + self.block_positions[...][positions_BxLx2[..., 1]]
        x_BxLxD = between_sublayers(constrain(x_BxLxD, ("batch", "length", None)))
        return self.norm(x_BxLxD) if self.config.deep_norm else x_BxLxD

    def _rotation(self, positions_BxLx2):
        c, theta = self.config, 10_000.0
        if c.positions == "rotary":
            return rotary_angles(positions_BxLx2.sum(-1), c.head_size, theta)
        if c.positions == "rotary_2d":
            return rotary_angles_2d(positions_BxLx2, c.head_size, theta)
        return None

    def _last_norm(self, x_BxLxD):
        return into_sublayer(x_BxLxD if self.config.deep_norm else self.norm(x_BxLxD))
