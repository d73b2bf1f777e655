"""The published models, by the sizes of their papers' tables.

Each function takes the size's name and any field of its configuration to change, so that a small model in a
family's style is `gpt2("124M", width=256, layers=4, heads=4)`. LLaMA's `mlp_width` does not follow the width:
change both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gptjax.config import ConfigError
from gptjax.models.encoder import EncoderConfig
from gptjax.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from gptjax.models.glm import GLM, GLMConfig
from gptjax.models.heads import LanguageModel, MaskedLanguageModel
from gptjax.models.rotary import RotaryScaling
from gptjax.models.transformer import DecoderConfig

# name: (layers, width, heads, dropout)
_TRANSFORMER = {"base": (6, 512, 8, 0.1), "big": (6, 1024, 16, 0.3)}

# name: (layers, width, heads); the four small ones are those of Turc et al. 2019, arXiv 1908.08962
_BERT = {
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
}

# name: (layers, width, heads)
_GPT1 = {"117M": (12, 768, 12)}
_GPT2 = {
    "124M": (12, 768, 12),
    "355M": (24, 1024, 16),
    "774M": (36, 1280, 20),
    "1.5B": (48, 1600, 25),
}
_GPT2_PAPER_NAMES = {"117M": "124M", "345M": "355M", "762M": "774M", "1542M": "1.5B"}

# The printed table gives XL 24 heads of 128 channels and 13B a width of 5140, against its other columns.
_GPT3 = {
    "125M": (12, 768, 12),
    "350M": (24, 1024, 16),
    "760M": (24, 1536, 16),
    "1.3B": (24, 2048, 16),
    "2.7B": (32, 2560, 32),
    "6.7B": (32, 4096, 32),
    "13B": (40, 5120, 40),
    "175B": (96, 12288, 96),
}

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

# name: (layers, width, heads, context, vocabulary)
_GLM = {
    "110M": (12, 768, 12, 512, 30_522),
    "335M": (24, 1024, 16, 512, 30_522),
    "10B": (48, 4096, 64, 1024, 50_257),
}
_GLM130B = {"130B": (70, 12288, 96, 32768)}
_CHATGLM = {"6B": (28, 4096, 32, 16384)}


def transformer(size: str, **changes) -> EncoderDecoderConfig:
    """The Transformer (Vaswani et al. 2017, arXiv 1706.03762, table 3): "base" or "big".

    The vocabulary is English-German's of about 37,000 (section 5.1); the paper does not bound the length, and
    a context of 1,024 is a choice.

    Raises:
        ConfigError: no such size.
    """
    layers, width, heads, rate = _look_up("The Transformer", _TRANSFORMER, size)
    shape = {"layers": layers, "width": width, "heads": heads, "dropout": rate}
    return EncoderDecoderConfig(**{"vocab_size": 37_000, "context_length": 1024} | shape | changes)


def bert(size: str, **changes) -> EncoderConfig:
    """BERT (Devlin et al. 2018, arXiv 1810.04805, section 3): "base", "large", "tiny", "mini", "small",
    "medium".

    The vocabulary is that of the uncased models. GELU is the tanh form of the released code; Hugging Face
    computes the same checkpoints with the exact one, `activation="gelu_erf"`.

    Raises:
        ConfigError: no such size.
    """
    layers, width, heads = _look_up("BERT", _BERT, size)
    published = {
        "vocab_size": 30_522,
        "context_length": 512,
        "layers": layers,
        "width": width,
        "heads": heads,
        "dropout": 0.1,
    }
    return EncoderConfig(**published | changes)


def gpt1(size: str, **changes) -> DecoderConfig:
    """GPT-1 (Radford et al. 2018, section 4.1): "117M", of 116,534,784 parameters.

    The vocabulary is the 40,478 entries of the released encoder; its three special tokens for fine-tuning
    are more rows.

    Raises:
        ConfigError: no such size.
    """
    layers, width, heads = _look_up("GPT-1", _GPT1, size)
    published = {
        "vocab_size": 40_478,
        "context_length": 512,
        "layers": layers,
        "width": width,
        "heads": heads,
        "norm_place": "post",
    }
    return DecoderConfig(**published | changes)


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


def gpt3(size: str, **changes) -> DecoderConfig:
    """GPT-3 (Brown et al. 2020, arXiv 2005.14165, table 2.1).

    Dense and locally banded layers alternate (section 2.1); the paper does not give the band's width, and 256
    is a choice. Where the printed table contradicts itself, heads and widths are those of its parameter
    counts: 16 heads in "1.3B", width 5120 in "13B".

    Args:
        size: "125M", "350M", "760M", "1.3B", "2.7B", "6.7B", "13B" or "175B".
        **changes: fields of `DecoderConfig` that differ.

    Raises:
        ConfigError: no such size.
    """
    layers, width, heads = _look_up("GPT-3", _GPT3, size)
    published = {
        "vocab_size": 50257,
        "context_length": 2048,
        "layers": layers,
        "width": width,
        "heads": heads,
        "attention_band": 256,
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


def llama31(size: str, **changes) -> DecoderConfig:
    """Llama 3.1 (Grattafiori et al. 2024, arXiv 2407.21783): `llama3` with a context of 131,072 tokens.

    The rotary frequencies are scaled by the published factor of 8 (`models/rotary.py`).

    Raises:
        ConfigError: no such size.
    """
    return llama3(size, **{"context_length": 131_072, "rotary_scaling": RotaryScaling()} | changes)


def glm(size: str, **changes) -> GLMConfig:
    """GLM (Du et al. 2021, arXiv 2103.10360): "110M" (Base), "335M" (Large) or "10B".

    Vocabularies are those of the tokenizers, BERT's uncased or GPT-2's; ids that mark blanks are more rows.

    Raises:
        ConfigError: no such size.
    """
    layers, width, heads, context, vocabulary = _look_up("GLM", _GLM, size)
    shape = {"layers": layers, "width": width, "heads": heads, "context_length": context}
    return GLMConfig(**shape | {"vocab_size": vocabulary, "dropout": 0.1} | changes)


def glm130b(size: str = "130B", **changes) -> GLMConfig:
    """GLM-130B (Zeng et al. 2022, arXiv 2210.02414): "130B".

    Raises:
        ConfigError: no such size.
    """
    style = {"positions": "rotary", "activation": "geglu", "embedding_gradient": 0.1, "dropout": 0.1}
    sizes = _look_up("GLM-130B", _GLM130B, size)
    return _deep_glm(sizes, {"vocab_size": 150_528} | style | changes)


def chatglm(size: str = "6B", **changes) -> GLMConfig:
    """ChatGLM-6B in version 1.1, without the first one's image tokens: "6B", of 6,173,286,400 parameters.

    Raises:
        ConfigError: no such size.
    """
    style = {"vocab_size": 130_528, "positions": "rotary_2d"}
    return _deep_glm(_look_up("ChatGLM", _CHATGLM, size), style | changes)


def _deep_glm(sizes, fields) -> GLMConfig:
    layers, width, heads, mlp_width = sizes
    shape = {"layers": layers, "width": width, "heads": heads, "mlp_width": mlp_width}
    return GLMConfig(**shape | {"context_length": 2048, "deep_norm": True} | fields)


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
        cached: whether it is a decoder alone, whose cache grows with every token.
    """

    title: str
    make: Callable[[str], Any]
    sizes: tuple[str, ...]
    model: Callable = LanguageModel
    cached: bool = True


FAMILIES = {
    "transformer": Family("Transformer", transformer, tuple(_TRANSFORMER), EncoderDecoder, cached=False),
    "bert": Family("BERT", bert, ("base", "large"), MaskedLanguageModel, cached=False),
    "gpt1": Family("GPT-1", gpt1, tuple(_GPT1)),
    "gpt2": Family("GPT-2", gpt2, tuple(_GPT2)),
    "gpt3": Family("GPT-3", gpt3, tuple(_GPT3)),
    "llama": Family("LLaMA", llama, tuple(_LLAMA)),
    "llama2": Family("Llama 2", llama2, tuple(_LLAMA2)),
    "llama3": Family("Llama 3", llama3, tuple(_LLAMA3)),
    "llama31": Family("Llama 3.1", llama31, tuple(_LLAMA3)),
    "glm": Family("GLM", glm, tuple(_GLM), GLM),
    "glm130b": Family("GLM-130B", glm130b, tuple(_GLM130B), GLM),
    "chatglm": Family("ChatGLM", chatglm, tuple(_CHATGLM), GLM),
}
