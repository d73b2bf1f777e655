"""From modules to pure functions: build, bind, and derive facts from the declared parameters.

A module is split once into a definition and a tree of plain arrays (nested dicts). Everything after
that - train steps, losses, samplers, checkpoints - sees the tree and calls `apply`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax import nnx

from gptjax.models.matmul import TransposedMatrix

Params = dict[str, Any]


class ModelDefinition:
    """What a model is, without its numbers.

    Attributes:
        config: the model's configuration.
        abstract: the parameter tree with `jax.ShapeDtypeStruct` leaves.
        axes: the same tree with a tuple of logical axis names at each leaf; the stacked layers' axis is
            "layers".
    """

    def __init__(self, module: Callable, config):
        self.config = config
        self._module = module
        skeleton = nnx.eval_shape(lambda: module(config, nnx.Rngs(params=jax.random.key(0))))
        self._graphdef, state = nnx.split(skeleton)
        self.abstract: Params = nnx.to_pure_dict(state)
        self.axes: Params = jax.tree.map(_axis_names, _plain(state), is_leaf=_is_variable)

    def initialise(self, key: jax.Array) -> Params:
        """Fresh parameters; jit it with `out_shardings` and they are born sharded."""
        return nnx.to_pure_dict(nnx.state(self._module(self.config, nnx.Rngs(params=key))))

    def bind(self, params: Params) -> nnx.Module:
        """The module with these parameters, to call its methods inside a pure function."""
        return nnx.merge(self._graphdef, params)

    def apply(self, params: Params, *args, **kwargs):
        """`module(*args, **kwargs)` with these parameters."""
        return self.bind(params)(*args, **kwargs)

    @property
    def parameter_count(self) -> int:
        """Number of scalars in the tree."""
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(self.abstract))


def layer_parameters(params: Params, rows: int | None = None) -> list[Params]:
    """The stacked layers as a list of N trees, for decoding.

    Done once before a token loop: slicing the stack inside it would copy every weight at every token.

    Args:
        params: of a language model.
        rows: B of the loop; for a single row the linear maps come as `TransposedMatrix`. None is many.
    """
    layers = unstack(params["decoder"]["blocks"])
    return [_transposed(layer) for layer in layers] if rows == 1 else layers


def unstack(blocks: Params) -> list[Params]:
    """A stack of N layers `[N, ...]` as a list of N trees."""
    layers = len(jax.tree.leaves(blocks)[0])
    return [jax.tree.map(lambda x, i=i: x[i], blocks) for i in range(layers)]


def first_layers(decoder: Params, layers: int) -> Params:
    """A decoder's parameters with its first layers alone; the embeddings and the last norm stay."""
    return decoder | {"blocks": jax.tree.map(lambda x: x[:layers], decoder["blocks"])}


def leaf_at(tree: Params, path: Iterable[str]):
    """What lies at a path of a parameter tree."""
    for name in path:
        tree = tree[name]
    return tree


def linear_maps(params: Params, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of the weights `[..., I, O]` of every linear map: the leaves that `Linear` calls "kernel".

    Embeddings, output matrices, norms and biases are none.

    Args:
        params: a parameter tree, or one of abstract leaves or of axis names.
        path: where the tree lies in a larger one.
    """
    found = []
    for name, child in params.items():
        if name == "kernel":
            found.append((*path, name))
        elif isinstance(child, dict):
            found += linear_maps(child, (*path, name))
    return found


def _transposed(layer: Params) -> Params:
    """The layer with its linear maps as `TransposedMatrix`, except those that are quantised."""
    maps = set(linear_maps(layer))

    def leaf(path, value):
        at = tuple(entry.key for entry in path)
        if at not in maps or not isinstance(value, jax.Array):
            return value
        # XLA would put the transpose back into the product.
        return TransposedMatrix(jax.lax.optimization_barrier(value.T))

    return jax.tree_util.tree_map_with_path(leaf, layer, is_leaf=lambda x: not isinstance(x, dict))


def _is_variable(leaf) -> bool:
    return isinstance(leaf, nnx.Variable)


def _plain(state):
    if _is_variable(state):
        return state
    return {name: _plain(child) for name, child in state.items()}


def _axis_names(variable) -> tuple[str, ...]:
    names, rank = variable.get_metadata()["axes"], len(variable.get_value().shape)
    return ("layers",) * (rank - len(names)) + tuple(names)


def matmul_flops_per_token(definition: ModelDefinition, length: int, adapters: int | None = None) -> float:
    """Floating-point operations of one token's forward and backward pass.

    `6 * (parameters in matrix products) + 12 N L D`, the last term for attention scores over a context
    of `length` (Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022, appendix B); a banded layer's context
    is its band.

    Args:
        definition: of a decoder with or without a head.
        length: L.
        adapters: parameters of the low-rank adapters that are trained in place of the model, whose own then
            get no gradient, 2 of the 6; None trains the model.
    """
    config, decoder = definition.config, definition.abstract.get("decoder", definition.abstract)
    looked_up = sum(decoder[name].size for name in ("positions", "block_positions") if name in decoder)
    # A tied embedding is multiplied once, as the output matrix; a scalar model has no such matrix.
    if not config.tied or "head" in definition.abstract:
        looked_up += decoder["embedding"].size
    multiplied = definition.parameter_count - looked_up
    contexts = sum(min(length, config.band(layer) or length) for layer in range(config.layers))
    weights = 6.0 * multiplied if adapters is None else 4.0 * multiplied + 6.0 * adapters
    return weights + 12.0 * contexts * config.width
