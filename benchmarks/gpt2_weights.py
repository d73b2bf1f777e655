"""One set of random GPT-2 weights for gptjax and its peers, so that all compute the same function.

Legend: D width, F feed-forward width, N layers, V vocabulary, P positions.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shape:
    """The shape of a GPT-2 (Radford et al. 2019, table 2): N, D, heads, V, P."""

    layers: int
    width: int
    heads: int
    vocab_size: int
    positions: int


def random_weights(shape: Shape, seed: int = 0) -> dict[str, np.ndarray]:
    """float32 weights under GPT-2's released names; the blocks' matrices are `[inputs, outputs]`.

    Drawn as GPT-2 starts: N(0, 0.02^2), maps into the residual stream divided by sqrt(2 N), biases 0.
    """
    rng, D = np.random.default_rng(seed), shape.width
    residual = 0.02 / np.sqrt(2 * shape.layers)

    def normal(*size, std=0.02):
        return std * rng.standard_normal(size, np.float32)

    def norm(name):
        return {f"{name}.weight": np.ones(D, np.float32), f"{name}.bias": np.zeros(D, np.float32)}

    def linear(name, inputs, outputs, std=0.02):
        return {
            f"{name}.weight": normal(inputs, outputs, std=np.float32(std)),
            f"{name}.bias": np.zeros(outputs, np.float32),
        }

    weights = {"wte.weight": normal(shape.vocab_size, D), "wpe.weight": normal(shape.positions, D, std=0.01)}
    for layer in (f"h.{i}." for i in range(shape.layers)):
        weights |= norm(layer + "ln_1") | linear(layer + "attn.c_attn", D, 3 * D)
        weights |= linear(layer + "attn.c_proj", D, D, residual)
        weights |= norm(layer + "ln_2") | linear(layer + "mlp.c_fc", D, 4 * D)
        weights |= linear(layer + "mlp.c_proj", 4 * D, D, residual)
    return weights | norm("ln_f")


def gptjax_config(shape: Shape, **changes):
    """gptjax's `DecoderConfig` of the shape; `changes` are further fields."""
    from gptjax.models.families import gpt2

    return gpt2(
        "124M",
        vocab_size=shape.vocab_size,
        context_length=shape.positions,
        width=shape.width,
        layers=shape.layers,
        heads=shape.heads,
        **changes,
    )


def transformers_config(shape: Shape, **changes):
    """`transformers`' `GPT2Config` of the shape; `changes` are further arguments."""
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.positions,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        **changes,
    )


def gptjax_params(weights: dict[str, np.ndarray], layers: int) -> dict:
    """The weights as gptjax's parameter tree: layers stacked, query, key and value apart."""

    def stacked(name):
        return np.stack([weights[f"h.{i}.{name}"] for i in range(layers)])

    def norm(name):
        return {"scale": stacked(f"{name}.weight"), "bias": stacked(f"{name}.bias")}

    def linear(name):
        return {"kernel": stacked(f"{name}.weight"), "bias": stacked(f"{name}.bias")}

    joint = linear("attn.c_attn")
    thirds = {part: np.split(array, 3, axis=-1) for part, array in joint.items()}
    attention = {
        name: {part: np.ascontiguousarray(third[i]) for part, third in thirds.items()}
        for i, name in enumerate(("query", "key", "value"))
    }
    blocks = {
        "attention_norm": norm("ln_1"),
        "attention": attention | {"output": linear("attn.c_proj")},
        "mlp_norm": norm("ln_2"),
        "mlp": {"up": linear("mlp.c_fc"), "down": linear("mlp.c_proj")},
    }
    return {
        "decoder": {
            "embedding": weights["wte.weight"],
            "positions": weights["wpe.weight"],
            "blocks": blocks,
            "norm": {"scale": weights["ln_f.weight"], "bias": weights["ln_f.bias"]},
        }
    }
