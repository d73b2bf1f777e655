"""Low-rank adaptation (LoRA): a frozen model, and a small learnt change of some of its linear maps.

`W' = W + (alpha / r) A B` with A `[I, r]` and B `[r, O]` (Hu et al. 2021, arXiv 2106.09685, section 4.1).
Linear maps here are `y = x W`, so the paper's `W + (alpha / r) B A` is transposed.

The adapters are a tree of their own: `kernel: {a, b}` stands where the model has `kernel`. Only this tree is
trained, so the base costs neither gradient nor moments that outlive a step:

    loss(adapters) = model_loss(attach(base, adapters, config))

Legend: N layers, I inputs, O outputs, r rank.
"""

import zlib
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
from pydantic import Field

from gptjax.config import ConfigError, configclass
from gptjax.models.functional import ModelDefinition, Params, leaf_at, linear_maps
from gptjax.models.matmul import AdaptedMatrix
from gptjax.models.quantization import QuantizedMatrix, dequantize_matrix
from gptjax.ranges import Count, Positive

ALL = "all"


@configclass
class LoraConfig:
    """Which linear maps are adapted, and how.

    Attributes:
        rank: r.
        alpha: the change is scaled by alpha / r, so that another rank needs no other learning rate
            (section 4.1). The paper sets it to the first rank tried.
        targets: linear maps, each by its name or a run of names of its path: "query", "attention",
            "mlp.up"; "all" takes every one of the layers, and of the heads, whose outputs may be fewer than
            the rank, none that is not named. The default is the paper's (section 4.2).
    """

    rank: Count = 8
    alpha: Positive = 8.0
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("query", "value")

    @property
    def scale(self) -> float:
        """What the product of A and B is multiplied with."""
        return self.alpha / self.rank


def target_maps(params: Params, config: LoraConfig) -> list[tuple[str, ...]]:
    """Paths of the kernels that are adapted.

    Args:
        params: the model's parameter tree, or one of abstract leaves or of axis names.
        config: names the targets.

    Raises:
        ConfigError: a target names no linear map of the model.
    """
    maps = linear_maps(params)
    chosen = set()
    for target in config.targets:
        found = [path for path in maps if (_in_a_layer(path) if target == ALL else _names(target, path[:-1]))]
        if not found:
            known = sorted({str(path[-2]) for path in maps})
            raise ConfigError(
                f"lora.targets: '{target}' names no linear map of the model: use '{ALL}' or names among "
                f"{', '.join(known)}"
            )
        chosen.update(found)
    return [path for path in maps if path in chosen]


def initialise(key: jax.Array, params: Params, config: LoraConfig) -> Params:
    """Fresh adapters, which change nothing yet: A ~ U(-1/sqrt(I), 1/sqrt(I)), B = 0.

    The distribution is that of the authors' code (`loralib`, Kaiming-uniform with a = sqrt(5)); section 4.1
    says Gaussian. Each map's A depends on the key and its own path alone, not on the other targets.

    Args:
        key: PRNG key.
        params: the model's parameters, or their abstract leaves.
        config: see `LoraConfig`.

    Returns:
        `{..., "kernel": {"a": float32 [N, I, r], "b": float32 [N, r, O]}}`, without N where the model has one
        such map.

    Raises:
        ConfigError: an unknown target, or a rank beyond the inputs or outputs of a target.
    """
    adapters: Params = {}
    for path in target_maps(params, config):
        *stack, inputs, outputs = leaf_at(params, path).shape
        name = ".".join(map(str, path[:-1]))
        if config.rank > min(inputs, outputs):
            raise ConfigError(
                f"lora.rank = {config.rank} is larger than the map {name} of {inputs} inputs and {outputs} "
                "outputs has: lower it"
            )
        own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        bound = inputs**-0.5
        a = jax.random.uniform(own_key, (*stack, inputs, config.rank), jnp.float32, -bound, bound)
        _insert(adapters, path, {"a": a, "b": jnp.zeros((*stack, config.rank, outputs), jnp.float32)})
    return adapters


def adapter_axes(axes: Params, config: LoraConfig) -> Params:
    """Logical axis names of the adapters, from those of the model: the rank's axis is "rank"."""
    named: Params = {}
    for path in target_maps(axes, config):
        *stack, inputs, outputs = leaf_at(axes, path)
        _insert(named, path, {"a": (*stack, inputs, "rank"), "b": (*stack, "rank", outputs)})
    return named


def merge(params: Params, adapters: Params, config: LoraConfig) -> Params:
    """The model's parameters with the adapters added: `W + (alpha / r) A B`. Pure and differentiable.

    Args:
        params: the base model's parameters; of a quantised base the adapted maps come back in float32.
        adapters: of the same model.
        config: the one they were made with.

    Raises:
        ConfigError: the adapters have a map that the model lacks, or of another shape.
    """
    return _change(params, adapters, partial(_sum, scale=config.scale), ())


def attach(params: Params, adapters: Params, config: LoraConfig) -> Params:
    """What `merge` computes, with the adapters beside their maps as `AdaptedMatrix`: what is trained.

    The adapted maps and their gradients, each as large as the maps of the base, are never made; where the
    same parameters read many tokens one after the other, merging them once is faster. Arguments and errors
    as `merge`'s; a quantised map stays so.
    """
    return _change(params, adapters, partial(AdaptedMatrix, scale=config.scale), ())


def unmerge(params: Params, adapters: Params, config: LoraConfig) -> Params:
    """The base that `merge` started from, up to float32 rounding. Arguments as `merge`'s."""
    return _change(params, adapters, partial(_sum, scale=-config.scale), ())


class LoraDefinition:
    """What the adapters of a model are, without their numbers: it stands where a `ModelDefinition` does.

    Attributes:
        config: the `LoraConfig`.
        abstract: the adapters with `jax.ShapeDtypeStruct` leaves.
        axes: the same tree with a tuple of logical axis names at each leaf.
    """

    def __init__(self, model: ModelDefinition, config: LoraConfig):
        self.config, self._model = config, model
        self.abstract: Params = jax.eval_shape(lambda: self.initialise(jax.random.key(0)))
        self.axes: Params = adapter_axes(model.axes, config)

    def initialise(self, key: jax.Array) -> Params:
        """Fresh adapters; jit it with `out_shardings` and they are born sharded."""
        return initialise(key, self._model.abstract, self.config)

    @property
    def parameter_count(self) -> int:
        """Number of scalars that are trained."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract))


def _sum(kernel, a, b, *, scale: float):
    if isinstance(kernel, QuantizedMatrix):
        kernel = dequantize_matrix(kernel)
    # At their default precision GPUs and TPUs would round the change to three digits.
    change = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    return kernel + (scale * change).astype(kernel.dtype)


def _change(params, adapters, combine, path):
    """The tree with `combine(kernel, a, b)` for every map that has an adapter."""
    if path[-1:] == ("kernel",):
        a, b = adapters["a"], adapters["b"]
        shape = (*a.shape[:-1], b.shape[-1])
        quantised = isinstance(params, QuantizedMatrix)
        known = (jax.eval_shape(dequantize_matrix, params) if quantised else params).shape
        if shape != known:
            raise ConfigError(
                f"the adapter of {'.'.join(path[:-1])} changes a map of shape {shape}, but the model's is "
                f"{known}: use the model it was trained on"
            )
        return combine(params, a, b)
    changed = dict(params)
    for name, child in adapters.items():
        if name not in params:
            raise ConfigError(
                f"the adapters have {'.'.join((*path, name))}, which the model lacks: use the model they "
                "were trained on"
            )
        changed[name] = _change(params[name], child, combine, (*path, name))
    return changed


def _in_a_layer(path: tuple) -> bool:
    """Whether a kernel is that of a layer; a head's linear map is a child of the model itself."""
    return len(path) > 2


def _names(target: str, path: tuple) -> bool:
    """Whether the dotted target is a run of names in the path."""
    wanted, names = target.split("."), [str(name) for name in path]
    return any(names[i : i + len(wanted)] == wanted for i in range(len(names)))


def _insert(tree: Params, path: tuple, value) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
