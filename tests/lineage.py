"""Small models of the lineage with fixed parameters and inputs: for stored numbers, for parity with torch."""

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.models.families import gpt1, llama31
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.models.rotary import RotaryScaling

V, L = 41, 16
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


def llama31_case():
    """As `gpt1_case`. The wavelengths of 8 channels are 6.3, 167, 4,443 and 118,143 tokens.

    An original context of 256 keeps the first, blends the second and stretches the others.
    """
    shape = TINY | {"heads": 2, "kv_heads": 1, "mlp_width": 24}
    scaling = RotaryScaling(original_context=256)
    definition = ModelDefinition(LanguageModel, llama31("8B", **shape, rotary_scaling=scaling))
    return definition, random_params(definition), lambda p: definition.apply(p, jnp.asarray(TOKENS))


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
