"""Training that goes on from a finished model, which may gain tokens (Chen et al. 2021, section 3.2)."""

import dataclasses

import jax

from gptjax.config import ConfigError
from gptjax.models.functional import ModelDefinition, Params
from gptjax.stages.handover import TrainedModel

# What may differ between a model and its base: it changes no parameter's meaning.
FREE = ("vocab_size", "dropout", "attention", "compute_dtype", "loop", "remat")


def start_parameters(base: TrainedModel, folder: str, definition: ModelDefinition, key: jax.Array) -> Params:
    """The base's parameters in a model of the same shape; tokens that it lacks start as in a fresh model.

    Args:
        base: a trained model.
        folder: where it comes from, for the message.
        definition: the model to train, its vocabulary as large as the base's or larger.
        key: of the fresh rows.

    Raises:
        ConfigError: the shapes differ; the message names the first key of the model that does.
    """
    old, new = base.definition.config, definition.config
    for field in dataclasses.fields(new):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before != after and field.name not in FREE:
            raise ConfigError(
                f"model.{field.name} = {after!r}, but the base {folder} was trained with {before!r}: set it "
                "so, or name another base"
            )
    if new.vocab_size < old.vocab_size:
        raise ConfigError(
            f"model.vocab_size = {new.vocab_size} is less than the {old.vocab_size} of the base {folder}: "
            "raise it"
        )
    if new.vocab_size == old.vocab_size:
        return base.params
    fresh = jax.jit(definition.initialise)(key)

    def grow(new_leaf, old_leaf):
        if new_leaf.shape == old_leaf.shape:
            return old_leaf
        return new_leaf.at[tuple(slice(size) for size in old_leaf.shape)].set(old_leaf)

    return jax.tree.map(grow, fresh, base.params)
