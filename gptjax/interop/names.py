"""Which tensor of a file is which parameter (`interop/tables.py`), read in both directions."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from gptjax.data.quality import DataError
from gptjax.interop.tables import TABLES, Path
from gptjax.models.encoder import EncoderConfig
from gptjax.models.functional import ModelDefinition, Params, leaf_at
from gptjax.models.rotary import repair_channels
from gptjax.models.transformer import DecoderConfig

# How each layout pairs the channels that rotary positions turn together, and what the other way is.
PAIRINGS = {"hf": "half", "gguf": "interleaved"}
OTHER = {"half": "interleaved", "interleaved": "half"}
SHOWN = 20
# No model has more of anything; a file that says so would only make large shapes.
MOST = 2**24


class TensorSource(Protocol):
    """A file, or several, of named tensors."""

    path: object

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""

    def read(self, name: str) -> np.ndarray:
        """One tensor, float32."""


@dataclass(frozen=True)
class Entry:
    """A tensor of a file, and the parameters it holds.

    Attributes:
        name: of the tensor.
        paths: of the parameters; several are joined along their last axis.
        layer: index on the parameters' first axis; None for parameters that are not stacked.
        transposed: the tensor is `[outputs, inputs]`, our kernels are `[inputs, outputs]`.
        head_size: of the heads whose rotary channels the file pairs otherwise than the model does; 0 where
            both do alike.
        pairing: how the file pairs them.
    """

    name: str
    paths: tuple[Path, ...]
    layer: int | None = None
    transposed: bool = False
    head_size: int = 0
    pairing: str = "half"


def entries(family: str, layout: str, config: DecoderConfig | EncoderConfig, kind: str) -> list[Entry]:
    """All tensors of a model.

    Args:
        family: "gpt1", "gpt2", "llama" or "bert".
        layout: "hf" or "gguf".
        config: of the model.
        kind: "language" or "scalar" of a decoder, "masked" or "encoder" of an encoder.
    """
    table, pairing = TABLES[family, layout], PAIRINGS[layout]
    head = [] if kind == "language" and config.tied else table.heads[kind]
    found = [Entry(name, paths, transposed=transposed) for name, paths, transposed in table.tops + head]
    turned = family == "llama" and config.rotary_pairing != pairing
    for layer in range(config.layers):
        for name, paths, transposed in table.blocks:
            head_size = config.head_size if turned and paths[0][-2] in ("query", "key") else 0
            paths = tuple((table.trunk, "blocks", *path) for path in paths)
            found.append(Entry(name.format(layer), paths, layer, transposed, head_size, pairing))
    return found


def read_parameters(
    source: TensorSource, wanted: list[Entry], definition: ModelDefinition, shardings
) -> Params:
    """The parameters, put in place tensor by tensor: in memory are they and one tensor.

    Args:
        source: the file.
        wanted: from `entries`.
        definition: of the model; parameters that no tensor holds are zero.
        shardings: where each parameter shall lie, a tree like the parameters.

    Returns:
        tree of float32 `jax.Array`; a device gets its parts alone.

    Raises:
        DataError: tensors are missing, left over or of another shape; the sentence lists their names.
    """
    check_names(source, wanted, definition)
    leaves = {_path(path): leaf for path, leaf in jax.tree.leaves_with_path(definition.abstract)}
    places = dict(zip(leaves, jax.tree.leaves(shardings), strict=True))
    found: dict[Path, jax.Array] = {}
    for entry in wanted:
        tensor, start = source.read(entry.name), 0
        tensor = tensor.T if entry.transposed else tensor
        if entry.head_size:
            tensor = repair_channels(tensor, entry.head_size, OTHER[entry.pairing])
        for path in entry.paths:
            part = tensor[..., start : start + leaves[path].shape[-1]]
            start += part.shape[-1]
            if entry.layer is None:
                found[path] = jax.device_put(part, places[path])
                continue
            if path not in found:
                found[path] = jnp.zeros(leaves[path].shape, jnp.float32, device=places[path])
            part = jax.device_put(part, _of_layer(places[path]))
            # Waited for, or tensors would gather before they are written.
            found[path] = _with_layer(places[path])(found[path], part, entry.layer).block_until_ready()
    for path in set(leaves) - set(found):
        found[path] = jnp.zeros(leaves[path].shape, jnp.float32, device=places[path])
    return jax.tree.unflatten(jax.tree.structure(definition.abstract), [found[path] for path in leaves])


@cache
def _with_layer(place: Sharding):
    """`(stack, part, layer)` -> the stack with one layer replaced, in the same memory."""
    return jax.jit(
        lambda stack, part, layer: stack.at[layer].set(part), donate_argnums=0, out_shardings=place
    )


def _of_layer(place: Sharding) -> Sharding:
    """Where one layer of a stack lies: split as the stack is."""
    return NamedSharding(place.mesh, P(*place.spec[1:])) if isinstance(place, NamedSharding) else place


def check_names(source: TensorSource, wanted: list[Entry], definition: ModelDefinition) -> None:
    """Refuses a file whose tensors are not exactly those of the model, before any is read."""
    shapes, expected = source.shapes(), {entry.name: entry for entry in wanted}
    missing, left = sorted(set(expected) - set(shapes)), sorted(set(shapes) - set(expected))
    if missing or left:
        faults = [
            f"{title} {_listed(names)}"
            for title, names in (("it lacks", missing), ("unknown are", left))
            if names
        ]
        raise DataError(f"the tensors of {source.path} are not those of the model: {'; '.join(faults)}")
    wrong = [
        f"{name} {list(shapes[name])} instead of {list(shape)}"
        for name, shape in ((e.name, tensor_shape(e, definition)) for e in wanted)
        if tuple(shapes[name]) != shape
    ]
    if wrong:
        raise DataError(
            f"tensors of {source.path} have other shapes than its configuration says: {_listed(wrong)}"
        )


def tensor_shape(entry: Entry, definition: ModelDefinition) -> tuple[int, ...]:
    """The shape that a tensor must have."""
    leaves = [leaf_at(definition.abstract, path).shape for path in entry.paths]
    shapes = [shape if entry.layer is None else shape[1:] for shape in leaves]
    shape = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
    return shape[::-1] if entry.transposed else shape


def write_tensors(wanted: list[Entry], params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float32 array) of each tensor, one after the other."""
    for entry in wanted:
        leaves = [leaf_at(params, path) for path in entry.paths]
        leaves = [leaf if entry.layer is None else leaf[entry.layer] for leaf in leaves]
        tensor = np.concatenate([np.asarray(leaf) for leaf in leaves], -1)
        if entry.head_size:
            tensor = repair_channels(tensor, entry.head_size, entry.pairing)
        yield entry.name, np.ascontiguousarray(tensor.T if entry.transposed else tensor, np.float32)


def _path(keys) -> Path:
    return tuple(key.key for key in keys)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
