"""Floating-point operations of a token's forward and backward pass, of models that are no plain decoder.

As in `functional.matmul_flops_per_token`, a weight of a matrix product takes 6 operations for every row that
is multiplied with it, and attention 12 D for every position that a layer looks at. What a row has once, or P
times, is spread over its tokens; padding is counted, for it is computed.

Legend: L length, D model width, N layers, P predictions of a row.
"""

from gptjax.models.encoder import EncoderConfig
from gptjax.models.functional import ModelDefinition, Params, leaf_at, linear_maps, matmul_flops_per_token
from gptjax.models.heads import LanguageModel


def weights_of(params: Params) -> int:
    """Weights of the linear maps of a parameter tree."""
    return sum(leaf_at(params, path).size for path in linear_maps(params))


def masked_flops_per_token(definition: ModelDefinition, length: int, predictions: int) -> float:
    """Of a BERT in pre-training: P tokens of a row go through the output matrix, one through the pooler."""
    parts, config = definition.abstract, definition.config
    predicted = predictions * (weights_of(parts["transform"]) + parts["encoder"]["embedding"].size)
    once = weights_of(parts["pooler"]) + weights_of(parts["next_sentence"])
    in_row = length * weights_of(parts["encoder"]) + predicted + once
    return 6.0 * in_row / length + 12.0 * config.layers * length * config.width


def classifier_flops_per_token(definition: ModelDefinition, length: int, models_language: bool) -> float:
    """Of a classifier; with `models_language` its trunk foretells L - 1 tokens of a sequence as well."""
    parts, trunk = definition.abstract, definition.config.trunk
    if isinstance(trunk, EncoderConfig):
        once = weights_of(parts["pooler"]) + weights_of(parts["head"])
        own = 6.0 * weights_of(parts["encoder"]) + 12.0 * trunk.layers * length * trunk.width
        return own + 6.0 * once / length
    language = matmul_flops_per_token(ModelDefinition(LanguageModel, trunk), length)
    unused = (1 if models_language else length) * trunk.vocab_size * trunk.width
    return language + 6.0 * (weights_of(parts["head"]) - unused) / length


def translation_flops_per_token(definition: ModelDefinition, length: float) -> float:
    """Of an encoder-decoder, for a source token and a target token together.

    The one embedding is multiplied as the output matrix; the encoder, the decoder and what it looks at of the
    source each attend to L positions.
    """
    parts, config = definition.abstract, definition.config
    multiplied = weights_of(parts["encoder"]) + weights_of(parts["decoder"]) + parts["embedding"].size
    return 6.0 * multiplied + 3 * 12.0 * config.layers * length * config.width
