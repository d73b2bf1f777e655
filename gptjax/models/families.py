"""The published models, by the sizes of their papers' tables: the decoders, and a list of all.

Those that read a text both ways are in `models/bidirectional_families.py` and are imported from here like
the others. Each function takes the size's name and any field of its configuration to change, so that a small
model in a family's style is `gpt2("124M", width=256, layers=4, heads=4)`. LLaMA's `mlp_width` does not follow
the width: change both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gptjax.models.bidirectional_families import (
    BERT_SIZES,
    CHATGLM_SIZES,
    GLM130B_SIZES,
    GLM_SIZES,
    TRANSFORMER_SIZES,
    bert,
    chatglm,
    glm,
    glm130b,
    look_up,
    transformer,
)
from gptjax.models.encoder_decoder import EncoderDecoder
from gptjax.models.glm import GLM
from gptjax.models.heads import LanguageModel, MaskedLanguageModel
from gptjax.models.rotary import RotaryScaling
from gptjax.models.transformer import DecoderConfig

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

# name: the GPT-3 of the same shape; the paper gives no shapes of its 12M, 25M and 42M
_CODEX = {"85M": "125M", "300M": "350M", "679M": "760M", "2.5B": "2.7B", "12B": "13B"}

# name: (layers, width, heads, mlp_width)
_LLAMA = {
    "7B": (32, 4096, 32, 11008),
    "13B": (40, 5120, 40, 13824),
    "33B": (60, 6656, 52, 17920),
    "65B": (80, 8192, 64, 22016),
}
# name: (layers, width, heads, mlp_width, kv_heads)
_LLAMA2 = {
    "7B": (32, 4096, 32, 11008, None),
    "13B": (40, 5120, 40, 13824, None),
    "34B": (48, 8192, 64, 22016, 8),
    "70B": (80, 8192, 64, 28672, 8),
}
# name: (layers, width, heads, mlp_width)
_LLAMA3 = {
    "8B": (32, 4096, 32, 14336),
    "70B": (80, 8192, 64, 28672),
    "405B": (126, 16384, 128, 53248),
}


def gpt1(size: str, **changes) -> DecoderConfig:
    """GPT-1 (Radford et al. 2018, section 4.1): "117M", of 116,534,784 parameters.

    The vocabulary is the 40,478 entries of the released encoder; its three special tokens for fine-tuning
    are more rows.

    Raises:
        ConfigError: no such size.
    """
    layers, width, heads = look_up("GPT-1", _GPT1, size)
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
    layers, width, heads = look_up("GPT-2", _GPT2, _GPT2_PAPER_NAMES.get(size, size))
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
    layers, width, heads = look_up("GPT-3", _GPT3, size)
    published = {
        "vocab_size": 50257,
        "context_length": 2048,
        "layers": layers,
        "width": width,
        "heads": heads,
        "attention_band": 256,
    }
    return DecoderConfig(**published | changes)


def codex(size: str, **changes) -> DecoderConfig:
    """Codex (Chen et al. 2021, arXiv 2107.03374, section 3): "85M", "300M", "679M", "2.5B" or "12B".

    `gpt3` by the names of the paper, which count no embeddings (12 N D^2), with the 24 runs of spaces of its
    tokenizer as more rows. The paper does not give the context: 4,096 is a choice.

    Raises:
        ConfigError: no such size.
    """
    own = {"vocab_size": 50_281, "context_length": 4096}
    return gpt3(look_up("Codex", _CODEX, size), **own | changes)


def llama(size: str, **changes) -> DecoderConfig:
    """LLaMA (Touvron et al. 2023, arXiv 2302.13971, table 2): "7B", "13B", "33B" or "65B".

    Rotary channels are paired as in Hugging Face's checkpoints ("half"); Meta's own files pair neighbours,
    `rotary_pairing="interleaved"`.

    Raises:
        ConfigError: no such size.
    """
    published = {"vocab_size": 32_000, "context_length": 2048, "norm_epsilon": 1e-6}
    return _llama_style(look_up("LLaMA", _LLAMA, size), published | changes)


def llama2(size: str, **changes) -> DecoderConfig:
    """Llama 2 (Touvron et al. 2023, arXiv 2307.09288, table 1): "7B", "13B", "34B" or "70B".

    "34B" was never released; its shape is that of Code Llama, which starts from it (Rozière et al. 2023,
    arXiv 2308.12950). Rotary pairing as in `llama`.

    Raises:
        ConfigError: no such size.
    """
    *shape, kv_heads = look_up("Llama 2", _LLAMA2, size)
    published = {"vocab_size": 32_000, "context_length": 4096, "kv_heads": kv_heads}
    return _llama_style(shape, published | changes)


def llama3(size: str, **changes) -> DecoderConfig:
    """Llama 3 (Grattafiori et al. 2024, arXiv 2407.21783, table 3): "8B", "70B" or "405B".

    Contexts are the 8,192 tokens of pretraining, without the rotary scaling by which Llama 3.1 reaches
    131,072. Rotary pairing as in `llama`.

    Raises:
        ConfigError: no such size.
    """
    published = {"vocab_size": 128_256, "context_length": 8192, "kv_heads": 8, "rotary_theta": 500_000.0}
    return _llama_style(look_up("Llama 3", _LLAMA3, size), published | changes)


def llama31(size: str, **changes) -> DecoderConfig:
    """Llama 3.1 (Grattafiori et al. 2024, arXiv 2407.21783): `llama3` with a context of 131,072 tokens.

    The rotary frequencies are scaled by the published factor of 8 (`models/rotary.py`).

    Raises:
        ConfigError: no such size.
    """
    return llama3(size, **{"context_length": 131_072, "rotary_scaling": RotaryScaling()} | changes)


def _llama_style(sizes, fields) -> DecoderConfig:
    layers, width, heads, mlp_width = sizes
    shape = {"layers": layers, "width": width, "heads": heads, "mlp_width": mlp_width}
    style = {"norm": "rmsnorm", "positions": "rotary", "activation": "swiglu", "bias": False, "tied": False}
    return DecoderConfig(**shape | style | fields)


@dataclass(frozen=True)
class Family:
    """A family as a list of its sizes, for those who want all of them.

    Attributes:
        title: its name in print.
        make: size -> configuration.
        sizes: every size of the paper, smallest first.
        model: the module of the published checkpoints.
        caches: full contexts whose keys and values it keeps while it writes: a decoder's own, an
            encoder-decoder's target and source, none of an encoder.
    """

    title: str
    make: Callable[[str], Any]
    sizes: tuple[str, ...]
    model: Callable = LanguageModel
    caches: int = 1


FAMILIES = {
    "transformer": Family("Transformer", transformer, tuple(TRANSFORMER_SIZES), EncoderDecoder, caches=2),
    "bert": Family("BERT", bert, tuple(BERT_SIZES), MaskedLanguageModel, caches=0),
    "gpt1": Family("GPT-1", gpt1, tuple(_GPT1)),
    "gpt2": Family("GPT-2", gpt2, tuple(_GPT2)),
    "gpt3": Family("GPT-3", gpt3, tuple(_GPT3)),
    "codex": Family("Codex", codex, tuple(_CODEX)),
    "llama": Family("LLaMA", llama, tuple(_LLAMA)),
    "llama2": Family("Llama 2", llama2, tuple(_LLAMA2)),
    "llama3": Family("Llama 3", llama3, tuple(_LLAMA3)),
    "llama31": Family("Llama 3.1", llama31, tuple(_LLAMA3)),
    "glm": Family("GLM", glm, tuple(GLM_SIZES), GLM),
    "glm130b": Family("GLM-130B", glm130b, tuple(GLM130B_SIZES), GLM),
    "chatglm": Family("ChatGLM", chatglm, tuple(CHATGLM_SIZES), GLM),
}
