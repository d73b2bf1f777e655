"""Small models of the lineage with fixed parameters and inputs: for stored numbers, for parity with torch.

What is stored of a gradient is its slope along one random direction of every parameter array. Whoever has the
gradient under other names, or no gradient but differences, finds the same numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np
from golden import check_golden

from gptjax.models.encoder_decoder import EncoderDecoder
from gptjax.models.families import bert, gpt1, gpt2, gpt3, llama, llama31, transformer
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel, MaskedLanguageModel
from gptjax.models.rotary import RotaryScaling

V, L = 42, 16
TINY = {"vocab_size": V, "context_length": L, "width": 16, "layers": 2, "heads": 4}
TOKENS = np.random.default_rng(0).integers(0, V, (2, L))


def random_params(definition):
    """Parameters of a size at which every part of the model shows in its output; gains lie around 1."""
    rng = np.random.default_rng(1)

    def draw(path, x):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return rng.normal(centre, 0.3, x.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, definition.abstract)


def direction(shape):
    """A fixed array that a model's log-probabilities are multiplied with to make a scalar."""
    return np.random.default_rng(2).normal(size=shape).astype(np.float32)


def gpt1_case():
    """(definition, params, `params -> logits`)."""
    definition = ModelDefinition(LanguageModel, gpt1("117M", **TINY))
    return definition, random_params(definition), lambda p: definition.apply(p, jnp.asarray(TOKENS))


def gpt2_case():
    """As `gpt1_case`."""
    definition = ModelDefinition(LanguageModel, gpt2("124M", **TINY))
    return definition, random_params(definition), lambda p: definition.apply(p, jnp.asarray(TOKENS))


def llama_case(kv_heads=None):
    """As `gpt1_case`, with as many key heads as query heads, or with fewer, which groups of queries share."""
    definition = ModelDefinition(LanguageModel, llama("7B", **TINY, kv_heads=kv_heads, mlp_width=24))
    return definition, random_params(definition), lambda p: definition.apply(p, jnp.asarray(TOKENS))


def llama31_case():
    """As `gpt1_case`. The wavelengths of 8 channels are 6.3, 167, 4,443 and 118,143 tokens.

    An original context of 256 keeps the first, blends the second and stretches the others.
    """
    shape = TINY | {"heads": 2, "kv_heads": 1, "mlp_width": 24}
    scaling = RotaryScaling(original_context=256)
    definition = ModelDefinition(LanguageModel, llama31("8B", **shape, rotary_scaling=scaling))
    return definition, random_params(definition), lambda p: definition.apply(p, jnp.asarray(TOKENS))


def gpt3_case():
    """As `gpt1_case`."""
    definition = ModelDefinition(LanguageModel, gpt3("125M", **TINY, attention_band=3))
    return definition, random_params(definition), lambda p: definition.apply(p, jnp.asarray(TOKENS))


def transformer_inputs():
    """Sources, targets, their segment ids; the second source has five tokens of padding, its target four."""
    sources, targets = TOKENS, np.random.default_rng(4).integers(0, V, (2, 11))
    source_ids, target_ids = np.ones(sources.shape, np.int32), np.ones(targets.shape, np.int32)
    source_ids[1, -5:], target_ids[1, -4:] = 0, 0
    return sources, targets, source_ids, target_ids


def transformer_case():
    """As `gpt1_case`, the logits (tokens of target 0, real tokens of target 1)."""
    definition = ModelDefinition(EncoderDecoder, transformer("base", **TINY, dropout=0.0))
    sources, targets, source_ids, target_ids = transformer_inputs()

    def logits_of(params):
        segments = {"source_segment_ids": source_ids, "segment_ids": target_ids}
        logits = definition.apply(params, sources, targets, **segments)
        return [logits[0], logits[1, :-4]]

    return definition, random_params(definition), logits_of


def bert_inputs():
    """Two rows of two sentences each, the second row with five tokens of padding."""
    rows = {"token_types": np.repeat([[0, 1], [0, 1]], 8, axis=1), "segment_ids": np.ones((2, L), np.int32)}
    rows["segment_ids"][1, -5:] = 0
    return rows


def bert_case(activation="gelu"):
    """As `gpt1_case`, the logits (tokens of row 0, real tokens of row 1, next sentence)."""
    shape = TINY | {"activation": activation, "dropout": 0.0}
    definition = ModelDefinition(MaskedLanguageModel, bert("base", **shape))

    def logits_of(params):
        tokens, sentence = definition.apply(params, jnp.asarray(TOKENS), **bert_inputs())
        return [tokens[0], tokens[1, :-5], sentence]

    return definition, random_params(definition), logits_of


def scalar_of(logits_of):
    """`params -> (a scalar that depends on every logit, logits)`, to differentiate."""

    def scalar(params):
        logits = logits_of(params)
        parts = [(jax.nn.log_softmax(x) * direction(x.shape)).mean() for x in jax.tree.leaves(logits)]
        return sum(parts), logits

    return scalar


def sampled(logits, scalar, count=24) -> dict[str, float]:
    """The scalar and logits at evenly spaced places, for a stored file."""
    flat = np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(logits)])
    places = np.linspace(0, flat.size - 1, count).astype(int)
    return {"scalar": float(scalar)} | {f"logit {place}": float(flat[place]) for place in places}


def ways(tree) -> dict[str, np.ndarray]:
    """{name of a leaf: a fixed random direction of its shape}."""
    rng = np.random.default_rng(5)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(key.key for key in path): rng.normal(size=leaf.shape) for path, leaf in leaves}


def slopes(gradient) -> dict[str, float]:
    """{name of a leaf: the product of its gradient and its direction}."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(gradient)]
    named = zip(ways(gradient).items(), leaves, strict=True)
    return {name: float((leaf * way).sum()) for (name, way), leaf in named}


def check_figures(name, logits, scalar, slopes):
    """Compares with what is stored, or stores it: `goldens/<name>_logits.json`, `<name>_gradients.json`."""
    check_golden(f"{name}_logits", sampled(logits, scalar))
    check_golden(f"{name}_gradients", slopes, size=None)


def figures(case):
    """(logits, scalar, slopes of the gradient) of a case."""
    _, params, logits_of = case
    (scalar, logits), gradient = jax.jit(jax.value_and_grad(scalar_of(logits_of), has_aux=True))(params)
    return logits, scalar, slopes(gradient)
