"""One transformer block, pre-norm or post-norm, and the loop over a stack of them.

Legend: B batch, L length, D model width, F feed-forward width, N layers.

The configurations of the decoder, the encoder and the encoder-decoder name what a block reads alike;
`BlockConfig` lists it.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import jax
from flax import nnx

from gptjax.models.attention import Attention
from gptjax.models.layers import LayerNorm, Linear, RMSNorm, dropout
from gptjax.sharding.rules import between_sublayers, into_sublayer, out_of_sublayer


class BlockConfig(Protocol):
    """What a block reads of its model's configuration; `DecoderConfig` explains each."""

    width: int
    heads: int
    key_heads: int
    head_size: int
    inner_width: int
    norm: str
    norm_place: str
    norm_epsilon: float
    rotary_pairing: str
    activation: str
    bias: bool
    attention_bias: bool
    dropout: float
    init_std: float | None
    residual_init_std: float | None
    residual_scale: float
    deep_gain: float
    attention: str
    compute_dtype: str


class Derived:
    """What follows from a configuration's fields, so that one with others replaced keeps no old number."""

    @property
    def head_size(self) -> int:
        """C, channels of one head."""
        return self.width // self.heads

    @property
    def key_heads(self) -> int:
        """Key/value heads: as many as query heads."""
        return self.heads

    @property
    def inner_width(self) -> int:
        """F: 4 D where `mlp_width` is None."""
        return 4 * self.width if self.mlp_width is None else self.mlp_width

    @property
    def residual_scale(self) -> float:
        """What the residual stream is multiplied with before a sublayer is added to it."""
        return 1.0

    @property
    def deep_gain(self) -> float:
        """What the initial weights of values, attention outputs and feed-forward maps are multiplied with."""
        return 1.0

    def band(self, layer: int) -> int | None:
        """How many keys a query of the layer reaches back; None is all."""
        return None

    def check_heads(self) -> None:
        """Raises ValueError when the heads do not divide the width."""
        if self.width % self.heads:
            raise ValueError(
                f"heads = {self.heads} does not divide width = {self.width}: use a width that is a multiple "
                f"of {self.heads}"
            )


def make_norm(config: BlockConfig) -> nnx.Module:
    """The normalisation the config names, over the model width."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.width, config.norm_epsilon)
    return LayerNorm(config.width, config.norm_epsilon, bias=config.bias)


def activate(x: jax.Array, activation: str) -> jax.Array:
    """The named activation without a gate, element by element.

    "gelu" is `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, "gelu_erf" is `0.5 x (1 + erf(x / sqrt 2))`
    (Hendrycks and Gimpel 2016, section 2), "relu" is `max(0, x)`. The two GELUs differ by up to 5e-4.
    """
    if activation == "relu":
        return jax.nn.relu(x)
    return jax.nn.gelu(x, approximate=activation == "gelu")


# Activations of the gate of a gated feed-forward network (Shazeer 2020, section 2).
GATES = {"swiglu": jax.nn.silu, "geglu": partial(activate, activation="gelu")}


class MLP(nnx.Module):
    """`down(activation(up(x)))`, or gated, `down(activation(gate(x)) * up(x))`: see `GATES`."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        c = config
        self.activation = c.activation
        linear = partial(Linear, bias=c.bias, dtype=c.compute_dtype, rngs=rngs, gain=c.deep_gain)
        enter = partial(linear, c.width, c.inner_width, axes=("embed", "mlp"), std=c.init_std)
        self.up = enter()
        self.gate = enter() if c.activation in GATES else None
        self.down = linear(c.inner_width, c.width, axes=("mlp", "embed"), std=c.residual_init_std)

    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        h_BxLxF = self.up(x_BxLxD)
        if self.gate is not None:
            h_BxLxF = GATES[self.activation](self.gate(x_BxLxD)) * h_BxLxF
        else:
            h_BxLxF = activate(h_BxLxF, self.activation)
        return self.down(h_BxLxF)


class Block(nnx.Module):
    """Self-attention and feed-forward, each around a residual connection.

    Pre-norm: `x += attention(norm(x)); x += mlp(norm(x))` (Radford et al. 2019, section 2.3).
    Post-norm: `x = norm(x + attention(x)); x = norm(x + mlp(x))` (Vaswani et al. 2017, section 3.1).
    DeepNorm is post-norm with `residual_scale * x` in place of x in the sums (Wang et al. 2022, section 3).
    """

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.dropout, self.norm_place = config.dropout, config.norm_place
        self.residual_scale = config.residual_scale
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, rngs)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config, rngs)

    def __call__(self, x_BxLxD, mask, rotation=None, cache=None, slot=None, key=None, band=None):
        """One layer, arguments as `Attention`'s; returns (float32 `[B, L, D]`, the longer cache or None)."""
        keys = (None, None) if key is None else jax.random.split(key)
        # What post-norm gathers first would otherwise be kept whole for the backward pass.
        x_BxLxD = between_sublayers(x_BxLxD)
        entering = into_sublayer(before(self.norm_place, self.attention_norm, x_BxLxD))
        attended, cache = self.attention(entering, mask, rotation, cache, slot, band=band)
        attended = dropout(out_of_sublayer(attended), self.dropout, keys[0])
        x_BxLxD = after(self.norm_place, self.attention_norm, self.residual_scale * x_BxLxD + attended)
        mapped = self.mlp(into_sublayer(before(self.norm_place, self.mlp_norm, x_BxLxD)))
        mapped = dropout(out_of_sublayer(mapped), self.dropout, keys[1])
        x_BxLxD = after(self.norm_place, self.mlp_norm, self.residual_scale * x_BxLxD + mapped)
        return between_sublayers(x_BxLxD), cache


def before(norm_place: str, norm: Callable, x: jax.Array) -> jax.Array:
    """What enters a sublayer: `norm(x)` in pre-norm, x in post-norm."""
    return norm(x) if norm_place == "pre" else x


def after(norm_place: str, norm: Callable, x: jax.Array) -> jax.Array:
    """What leaves the residual sum of a sublayer: x in pre-norm, `norm(x)` in post-norm."""
    return norm(x) if norm_place == "post" else x


def stack(block: Callable, layers: int, config, rngs: nnx.Rngs) -> nnx.Module:
    """N blocks in one module whose parameters are stacked along a first axis, `[N, ...]`."""
    layer_keys = jax.random.split(rngs.params(), layers)
    return nnx.vmap(lambda key: block(config, nnx.Rngs(params=key)))(layer_keys)


def run_stack(
    blocks: nnx.Module, x_BxLxD: jax.Array, keys, apply: Callable, *, loop: str, remat: str, period: int = 1
):
    """x through the blocks of a stack, one after the other.

    Args:
        blocks: from `stack`.
        x_BxLxD: what enters the first.
        keys: N dropout keys, or None.
        apply: `(block, x, key, kind) -> x`; `kind` is the layer's number modulo `period`, a Python integer.
        loop: "scan" compiles `period` blocks for all layers; "unroll" compiles each.
        remat: what the backward pass computes again: "none", "dots" or "full".
        period: after how many layers the kinds repeat; divides N.

    Returns:
        what leaves the last, `[B, L, D]`.
    """
    block_def, stacked = nnx.split(blocks)

    def layer(kind, x, params_and_key):
        params, key = params_and_key
        return apply(nnx.merge(block_def, params), x, key, kind)

    kinds = [_rematerialise(partial(layer, kind), remat) for kind in range(period)]
    inputs, layers = (stacked, keys), len(jax.tree.leaves(stacked)[0])
    if loop == "unroll":
        for i in range(layers):
            x_BxLxD = kinds[i % period](x_BxLxD, jax.tree.map(lambda a, i=i: a[i], inputs))
        return x_BxLxD
    if period == 1:
        return jax.lax.scan(lambda x, one: (kinds[0](x, one), None), x_BxLxD, inputs)[0]

    def turn(x, several):
        for kind in range(period):
            x = kinds[kind](x, jax.tree.map(lambda a, i=kind: a[i], several))
        return x, None

    turns = jax.tree.map(lambda a: a.reshape(layers // period, period, *a.shape[1:]), inputs)
    return jax.lax.scan(turn, x_BxLxD, turns)[0]


def _rematerialise(layer, policy):
    if policy == "full":
        return jax.checkpoint(layer)
    if policy == "dots":
        return jax.checkpoint(layer, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    return layer
