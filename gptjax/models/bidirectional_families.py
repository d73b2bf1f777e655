"""The published models that read a text both ways, by the sizes of their papers' tables.

The Transformer's encoder reads the source so, BERT all of its text, GLM the part around the blanks.
`models/families.py`, which has the decoders, lists these too.
"""

from gptjax.config import ConfigError
from gptjax.models.encoder import EncoderConfig
from gptjax.models.encoder_decoder import EncoderDecoderConfig
from gptjax.models.glm import GLMConfig

# name: (layers, width, heads, dropout)
TRANSFORMER_SIZES = {"base": (6, 512, 8, 0.1), "big": (6, 1024, 16, 0.3)}

# name: (layers, width, heads); the four below "base" are those of Turc et al. 2019, arXiv 1908.08962
BERT_SIZES = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}

# name: (layers, width, heads, context, vocabulary)
GLM_SIZES = {
    "110M": (12, 768, 12, 512, 30_522),
    "335M": (24, 1024, 16, 512, 30_522),
    "10B": (48, 4096, 64, 1024, 50_257),
}
GLM130B_SIZES = {"130B": (70, 12288, 96, 32768)}
CHATGLM_SIZES = {"6B": (28, 4096, 32, 16384)}


def transformer(size: str, **changes) -> EncoderDecoderConfig:
    """The Transformer (Vaswani et al. 2017, arXiv 1706.03762, table 3): "base" or "big".

    The vocabulary is English-German's of about 37,000 (section 5.1); the paper does not bound the length, and
    a context of 1,024 is a choice.

    Raises:
        ConfigError: no such size.
    """
    layers, width, heads, rate = look_up("The Transformer", TRANSFORMER_SIZES, size)
    shape = {"layers": layers, "width": width, "heads": heads, "dropout": rate}
    return EncoderDecoderConfig(**{"vocab_size": 37_000, "context_length": 1024} | shape | changes)


def bert(size: str, **changes) -> EncoderConfig:
    """BERT (Devlin et al. 2018, arXiv 1810.04805, section 3): "base", "large", or a smaller one.

    These are "tiny", "mini", "small" and "medium" (Turc et al. 2019). The vocabulary is that of the uncased
    models. GELU is the tanh form of the released code; Hugging Face computes the same checkpoints with the
    exact one, `activation="gelu_erf"`.

    Raises:
        ConfigError: no such size.
    """
    layers, width, heads = look_up("BERT", BERT_SIZES, size)
    published = {
        "vocab_size": 30_522,
        "context_length": 512,
        "layers": layers,
        "width": width,
        "heads": heads,
        "dropout": 0.1,
    }
    return EncoderConfig(**published | changes)


def glm(size: str, **changes) -> GLMConfig:
    """GLM (Du et al. 2021, arXiv 2103.10360): "110M" (Base), "335M" (Large) or "10B".

    Vocabularies are those of the tokenizers, BERT's uncased or GPT-2's; ids that mark blanks are more rows.

    Raises:
        ConfigError: no such size.
    """
    layers, width, heads, context, vocabulary = look_up("GLM", GLM_SIZES, size)
    shape = {"layers": layers, "width": width, "heads": heads, "context_length": context}
    return GLMConfig(**shape | {"vocab_size": vocabulary, "dropout": 0.1} | changes)


def glm130b(size: str = "130B", **changes) -> GLMConfig:
    """GLM-130B (Zeng et al. 2022, arXiv 2210.02414): "130B".

    Raises:
        ConfigError: no such size.
    """
    style = {"positions": "rotary", "activation": "geglu", "embedding_gradient": 0.1, "dropout": 0.1}
    sizes = look_up("GLM-130B", GLM130B_SIZES, size)
    return _deep_glm(sizes, {"vocab_size": 150_528} | style | changes)


def chatglm(size: str = "6B", **changes) -> GLMConfig:
    """ChatGLM-6B in version 1.1, without the first one's image tokens: "6B", of 6,173,286,400 parameters.

    Raises:
        ConfigError: no such size.
    """
    style = {"vocab_size": 130_528, "positions": "rotary_2d"}
    return _deep_glm(look_up("ChatGLM", CHATGLM_SIZES, size), style | changes)


def _deep_glm(sizes, fields) -> GLMConfig:
    layers, width, heads, mlp_width = sizes
    shape = {"layers": layers, "width": width, "heads": heads, "mlp_width": mlp_width}
    return GLMConfig(**shape | {"context_length": 2048, "deep_norm": True} | fields)


def look_up(family: str, sizes: dict[str, tuple], size: str) -> tuple:
    """The row of a size in a family's table.

    Raises:
        ConfigError: no such size.
    """
    if size not in sizes:
        raise ConfigError(f"{family} was not published in size {size!r}: use one of {', '.join(sizes)}")
    return sizes[size]
