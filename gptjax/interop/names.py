"""Which tensor of a file is which parameter: one table for each family and format, read in both directions.

Legend: N layers, H heads, C head size, D model width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.data.quality import DataError
from gptjax.models.functional import ModelDefinition, Params, leaf_at
from gptjax.models.transformer import DecoderConfig

Path = tuple[str, ...]
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
        interleaved: number of heads when what rotary positions turn together lies together where the numbers
            come from, and half a head apart where they go. 0: the same order in both.
    """

    name: str
    paths: tuple[Path, ...]
    layer: int | None = None
    transposed: bool = False
    interleaved: int = 0


def entries(family: str, layout: str, config: DecoderConfig, scalar: bool = False) -> list[Entry]:
    """All tensors of a model.

    Args:
        family: "gpt2" or "llama".
        layout: "hf" or "gguf".
        config: of the model.
        scalar: it has one number per position instead of the vocabulary (Hugging Face alone).
    """
    tops, blocks = _TABLES[family, layout]
    found = [Entry(name, paths, transposed=transposed) for name, paths, transposed in tops]
    if scalar:
        found.append(Entry("score.weight", (("head",),), transposed=True))
    elif not config.tied:
        found.append(Entry(_OUTPUT[layout], (("unembedding",),), transposed=True))
    heads = {"query": config.heads, "key": config.key_heads}
    for layer in range(config.layers):
        for name, paths, transposed in blocks:
            paths = tuple(("decoder", "blocks", *path) for path in paths)
            # GGUF keeps LLaMA's pairs side by side, and a model of ours may.
            turned = layout == "gguf" or config.rotary_pairing == "interleaved"
            turned = heads.get(paths[0][-2], 0) if turned and family == "llama" else 0
            found.append(Entry(name.format(layer), paths, layer, transposed, turned))
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
        tree of float32 `jax.Array`.

    Raises:
        DataError: tensors are missing, left over or of another shape; the sentence lists their names.
    """
    check_names(source, wanted, definition)
    leaves = {_path(path): leaf for path, leaf in jax.tree.leaves_with_path(definition.abstract)}
    places = dict(zip(leaves, jax.tree.leaves(shardings), strict=True))
    found: dict[Path, jax.Array] = {}
    for entry in wanted:
        tensor, start = _halves(source.read(entry.name), entry.interleaved), 0
        tensor = tensor.T if entry.transposed else tensor
        for path in entry.paths:
            part = tensor[..., start : start + leaves[path].shape[-1]]
            start += part.shape[-1]
            if entry.layer is None:
                found[path] = jax.device_put(part, places[path])
                continue
            if path not in found:
                found[path] = jnp.zeros(leaves[path].shape, jnp.float32, device=places[path])
            # Waited for, or tensors would gather before they are written.
            found[path] = _with_layer(found[path], part, entry.layer).block_until_ready()
    for path in set(leaves) - set(found):
        found[path] = jnp.zeros(leaves[path].shape, jnp.float32, device=places[path])
    return jax.tree.unflatten(jax.tree.structure(definition.abstract), [found[path] for path in leaves])


@partial(jax.jit, donate_argnums=0)
def _with_layer(stack: jax.Array, part: jax.Array, layer: int) -> jax.Array:
    """The stack with one layer replaced, in the same memory."""
    return stack.at[layer].set(part)


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
        joined = np.concatenate([np.asarray(leaf) for leaf in leaves], -1)
        tensor = _halves(joined.T if entry.transposed else joined, entry.interleaved)
        yield entry.name, np.ascontiguousarray(tensor, np.float32)


def _halves(tensor: np.ndarray, heads: int) -> np.ndarray:
    """The outputs `[H C, ...]` of rotary's pairing "interleaved" in the order of "half"; heads = 0: as is."""
    if not heads:
        return tensor
    outputs, *inputs = tensor.shape
    paired = tensor.reshape(heads, outputs // heads // 2, 2, *inputs)
    return np.swapaxes(paired, 1, 2).reshape(outputs, *inputs)


def _path(keys) -> Path:
    return tuple(key.key for key in keys)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _norms(pairs: dict[str, Path], bias: bool) -> list:
    """Rows for the scales, and the biases, of norms."""
    rows = [(f"{name}.weight", ((*path, "scale"),), False) for name, path in pairs.items()]
    return rows + [(f"{name}.bias", ((*path, "bias"),), False) for name, path in pairs.items() if bias]


def _maps(pairs: dict[str, tuple[Path, ...]], transposed: bool, bias: bool) -> list:
    """Rows for linear maps."""
    rows = [
        (f"{name}.weight", tuple((*path, "kernel") for path in paths), transposed)
        for name, paths in pairs.items()
    ]
    biases = [
        (f"{name}.bias", tuple((*path, "bias") for path in paths), False) for name, paths in pairs.items()
    ]
    return rows + (biases if bias else [])


_QUERY, _KEY, _VALUE, _OUT = (("attention", name) for name in ("query", "key", "value", "output"))
_UP, _GATE, _DOWN = (("mlp", name) for name in ("up", "gate", "down"))
_EMBEDDING, _POSITIONS = (("decoder", "embedding"),), (("decoder", "positions"),)
_FINAL = ("decoder", "norm")
_OUTPUT = {"hf": "lm_head.weight", "gguf": "output.weight"}


def _gpt2(embedding, positions, final, norms, maps, transposed):
    """The table of GPT-2; `maps` are query-key-value, attention's output, up and down."""
    parts = ((_QUERY, _KEY, _VALUE), (_OUT,), (_UP,), (_DOWN,))
    tops = [(embedding, _EMBEDDING, False), (positions, _POSITIONS, False), *_norms({final: _FINAL}, True)]
    blocks = _norms(dict(zip(norms, (("attention_norm",), ("mlp_norm",)), strict=True)), True)
    return tops, blocks + _maps(dict(zip(maps, parts, strict=True)), transposed, True)


def _llama(embedding, final, norms, maps):
    """The table of LLaMA; `maps` are query, key, value, output, gate, up and down."""
    parts = ((_QUERY,), (_KEY,), (_VALUE,), (_OUT,), (_GATE,), (_UP,), (_DOWN,))
    tops = [(embedding, _EMBEDDING, False), *_norms({final: _FINAL}, False)]
    blocks = _norms(dict(zip(norms, (("attention_norm",), ("mlp_norm",)), strict=True)), False)
    return tops, blocks + _maps(dict(zip(maps, parts, strict=True)), True, False)


def _named(prefix: str, names: str) -> list[str]:
    return [prefix + name for name in names.split()]


_TABLES = {
    # transformers' Conv1D kernels are [inputs, outputs] like ours.
    ("gpt2", "hf"): _gpt2(
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "transformer.ln_f",
        _named("transformer.h.{}.", "ln_1 ln_2"),
        _named("transformer.h.{}.", "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj"),
        transposed=False,
    ),
    ("gpt2", "gguf"): _gpt2(
        "token_embd.weight",
        "position_embd.weight",
        "output_norm",
        _named("blk.{}.", "attn_norm ffn_norm"),
        _named("blk.{}.", "attn_qkv attn_output ffn_up ffn_down"),
        transposed=True,
    ),
    ("llama", "hf"): _llama(
        "model.embed_tokens.weight",
        "model.norm",
        _named("model.layers.{}.", "input_layernorm post_attention_layernorm"),
        _named("model.layers.{}.self_attn.", "q_proj k_proj v_proj o_proj")
        + _named("model.layers.{}.mlp.", "gate_proj up_proj down_proj"),
    ),
    ("llama", "gguf"): _llama(
        "token_embd.weight",
        "output_norm",
        _named("blk.{}.", "attn_norm ffn_norm"),
        _named("blk.{}.", "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down"),
    ),
}
