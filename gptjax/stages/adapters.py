"""Training of low-rank adapters on a frozen base (`models/lora.py`), and the folder they are kept in.

The base is an argument of the step: it is neither trained, saved with every checkpoint, nor written into the
compiled program.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax

from gptjax.config import ConfigError, from_json, to_json
from gptjax.models.functional import Params
from gptjax.models.lora import LoraConfig, LoraDefinition, attach, merge
from gptjax.runs import write_json_atomic
from gptjax.sharding.rules import parameter_shardings
from gptjax.stages.handover import TrainedModel, make_empty
from gptjax.training.checkpoint import load_tree, save_tree
from gptjax.training.step import make_train_step


@partial(jax.tree_util.register_dataclass, data_fields=("base", "adapters"), meta_fields=("lora",))
@dataclass(frozen=True)
class AdaptedParams:
    """Parameters of a model in two parts, for programs that take both and put them together inside.

    Attributes:
        base: the frozen parameters, shared by all who adapt them.
        adapters: what is added.
        lora: how.
    """

    base: Params
    adapters: Params
    lora: LoraConfig


def whole(params: Params | AdaptedParams) -> Params:
    """The parameters a model decodes with, merged once for many tokens; pure."""
    return merge(params.base, params.adapters, params.lora) if isinstance(params, AdaptedParams) else params


def attached(params: Params | AdaptedParams) -> Params:
    """The parameters a model reads whole sequences with; pure, and no map of the base is copied."""
    return attach(params.base, params.adapters, params.lora) if isinstance(params, AdaptedParams) else params


def make_adapted_step(loss_fn, count_fn, lora: LoraConfig, optimizer, **choices):
    """`step(state, batch, key, base) -> (state, metrics)`: a train step whose parameters are the adapters.

    Args:
        loss_fn, count_fn: of the whole model, as in `make_train_step`.
        lora: which of its maps are adapted.
        optimizer: from `make_optimizer` with the adapters' axes.
        choices: further ones of `make_train_step`.
    """

    def step(state, batch, key, base):
        def adapted_loss(adapters, batch, total, key):
            return loss_fn(attach(base, adapters, lora), batch, total, key)

        return make_train_step(adapted_loss, count_fn, optimizer, **choices)(state, batch, key)

    return step


def merged(base: Params, adapters: Params, lora: LoraConfig) -> Params:
    """New parameters of the base's layout with the adapters added, in one program."""
    return jax.jit(partial(merge, config=lora))(base, adapters)


def save_adapters(folder: Path, lora: LoraConfig, adapters: Params, base: TrainedModel) -> None:
    """Writes `folder/adapters/{params/, adapters.json}`; the last file makes it valid.

    Args:
        folder: the run folder.
        lora: what the adapters are.
        adapters: their parameters.
        base: the model they change; its digest is kept, since on another model they mean nothing.
    """
    target = folder / "adapters"
    make_empty(target)
    save_tree(target / "params", adapters)
    write_json_atomic(target / "adapters.json", {"lora": to_json(lora), "base_digest": base.digest})


def load_adapters(
    folder: str | Path, base: TrainedModel, mesh: jax.sharding.Mesh
) -> tuple[LoraConfig, Params]:
    """The adapters a run has kept, laid out on the mesh.

    Args:
        folder: the run folder.
        base: the model they were trained on.
        mesh: from `make_mesh`.

    Raises:
        ConfigError: there are none, or they were trained on another model.
    """
    source = Path(folder) / "adapters"
    if not (source / "adapters.json").exists():
        raise ConfigError(f"{folder} holds no adapters: name a finished fine-tuning run with lora")
    facts = json.loads((source / "adapters.json").read_text("utf-8"))
    if facts["base_digest"] != base.digest:
        raise ConfigError(
            f"the adapters of {folder} were trained on the model {facts['base_digest'][:16]}..., but this "
            f"base is {base.digest[:16]}...: use the model they were trained on"
        )
    lora = from_json(facts["lora"])
    adapters = LoraDefinition(base.definition, lora)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        adapters.abstract,
        parameter_shardings(mesh, adapters.abstract, adapters.axes),
    )
    return lora, load_tree(source / "params", abstract)
