"""The published decoders, by the sizes of their papers' tables.

Each function takes the size's name and any field of `DecoderConfig` to change, so that a small model in a
family's style is `gpt2("124M", width=256, layers=4, heads=4)`. LLaMA's `mlp_width` does not follow the width:
change both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gptjax.config import ConfigError
from gptjax.models.heads import LanguageModel
from gptjax.models.transformer import DecoderConfig

# name: (layers, width, heads)
_GPT2 = {
    "124M": (12, 768, 12),
    "355M": (24, 1024, 16),
    "774M": (36, 1280, 20),
    "1.5B": (48, 1600, 25),
}
_GPT2_PAPER_NAMES = {"117M": "124M", "345M": "355M", "762M": "774M", "1542M": "1.5B"}

# name: (layers, width, heads, mlp_width)
_LLAMA = {
    "7B": (32, 4096, 32, 11008),
    "13B": (40, 5120, 40, 13824),
    "33B": (60, 6656, 52, 17920),
    "65B": (80, 8192, 64, 22016),
}
_LLAMA2 = {"70B": (80, 8192, 64, 28672)}
_LLAMA3 = {
    "8B": (32, 4096, 32, 14336),
    "70B": (80, 8192, 64, 28672),
    "405B": (126, 16384, 128, 53248),
}


def gpt2(size: str, **changes) -> DecoderConfig:
    """GPT-2 (Radford et al. 2019, table 2).

    Args:
        size: "124M", "355M", "774M" or "1.5B", true counts; the paper's own names, which undercount, are
            accepted too: "117M", "345M", "762M", "1542M".
        **changes: fields of `DecoderConfig` that differ.

    Raises:
        ConfigError: no such size.
    """
    layers, width, heads = _look_up("GPT-2", _GPT2, _GPT2_PAPER_NAMES.get(size, size))
    published = {
        "vocab_size": 50257,
        "context_length": 1024,
        "layers": layers,
        "width": width,
        "heads": heads,
    }
    return DecoderConfig(**published | changes)


def llama(size: str, **changes) -> DecoderConfig:
    """LLaMA (Touvron et al. 2023, arXiv 2302.13971, table 2): "7B", "13B", "33B" or "65B".

    Rotary channels are paired as in Hugging Face's checkpoints ("half"); Meta's own files pair neighbours,
    `rotary_pairing="interleaved"`.

    Raises:
        ConfigError: no such size.
    """
    published = {"vocab_size": 32_000, "context_length": 2048, "norm_epsilon": 1e-6}
    return _llama_style("LLaMA", _LLAMA, size, published | changes)


def llama2(size: str, **changes) -> DecoderConfig:
    """Llama 2 (Touvron et al. 2023, arXiv 2307.09288, table 1): "70B". Rotary pairing as in `llama`.

    Raises:
        ConfigError: no such size.
    """
    published = {"vocab_size": 32_000, "context_length": 4096, "kv_heads": 8}
    return _llama_style("Llama 2", _LLAMA2, size, published | changes)


def llama3(size: str, **changes) -> DecoderConfig:
    """Llama 3 (Grattafiori et al. 2024, arXiv 2407.21783, table 3): "8B", "70B" or "405B".

    Contexts are the 8,192 tokens of pretraining, without the rotary scaling by which Llama 3.1 reaches
    131,072. Rotary pairing as in `llama`.

    Raises:
        ConfigError: no such size.
    """
    published = {"vocab_size": 128_256, "context_length": 8192, "kv_heads": 8, "rotary_theta": 500_000.0}
    return _llama_style("Llama 3", _LLAMA3, size, published | changes)


def _llama_style(family, sizes, size, fields) -> DecoderConfig:
    layers, width, heads, mlp_width = _look_up(family, sizes, size)
    shape = {"layers": layers, "width": width, "heads": heads, "mlp_width": mlp_width}
    style = {"norm": "rmsnorm", "positions": "rotary", "activation": "swiglu", "bias": False, "tied": False}
    return DecoderConfig(**shape | style | fields)


def _look_up(family, sizes, size):
    if size not in sizes:
        raise ConfigError(f"{family} was not published in size {size!r}: use one of {', '.join(sizes)}")
    return sizes[size]


@dataclass(frozen=True)
class Family:
    """A family as a list of its sizes, for those who want all of them.

    Attributes:
        title: its name in print.
        make: size -> configuration.
        sizes: every size of the paper, smallest first.
        model: the module of the published checkpoints.
        cached: whether it generates, and so keeps keys and values.
    """

    title: str
    make: Callable[[str], Any]
    sizes: tuple[str, ...]
    model: Callable = LanguageModel
    cached: bool = True


FAMILIES = {
    "gpt2": Family("GPT-2", gpt2, tuple(_GPT2)),
    "llama": Family("LLaMA", llama, tuple(_LLAMA)),
    "llama2": Family("Llama 2", llama2, tuple(_LLAMA2)),
    "llama3": Family("Llama 3", llama3, tuple(_LLAMA3)),
}
