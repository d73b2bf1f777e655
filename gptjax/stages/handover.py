"""What one stage hands to the next: a model's configuration, its parameters and its tokenizer."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import jax

from gptjax.config import ConfigError, from_json, to_json
from gptjax.data.tokenizers import Tokenizer
from gptjax.models.functional import ModelDefinition, Params
from gptjax.models.heads import LanguageModel, ScalarModel
from gptjax.runs import write_json_atomic
from gptjax.sharding.rules import parameter_shardings
from gptjax.training.checkpoint import load_tree, save_tree

KINDS = {"language": LanguageModel, "scalar": ScalarModel}


@dataclass(frozen=True)
class TrainedModel:
    """A model that can be called.

    Attributes:
        definition: what it is.
        params: its numbers.
        tokenizer: the only tokenizer whose ids it understands.
    """

    definition: ModelDefinition
    params: Params
    tokenizer: Tokenizer


def save_model(folder: Path, kind: str, config, params: Params, tokenizer: Tokenizer) -> None:
    """Writes `folder/model/{params/, tokenizer.model, model.json}`; the last file makes it valid.

    Args:
        folder: a stage's run folder.
        kind: "language" or "scalar".
        config: the model's `DecoderConfig`.
        params: parameters to keep.
        tokenizer: stored beside them, its hash in `model.json`.
    """
    target = folder / "model"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    save_tree(target / "params", params)
    tokenizer.save(target / "tokenizer.model")
    facts = {"kind": kind, "config": to_json(config), "tokenizer_hash": tokenizer.hash}
    write_json_atomic(target / "model.json", facts)


def model_kind(folder: str | Path) -> str | None:
    """The kind of the finished model in a run folder; None when there is none."""
    facts = Path(folder) / "model" / "model.json"
    return json.loads(facts.read_text("utf-8"))["kind"] if facts.exists() else None


def load_model(folder: str | Path, mesh: jax.sharding.Mesh) -> TrainedModel:
    """Reads the model a stage left in its run folder, laid out on the mesh.

    Raises:
        ConfigError: there is no finished model, or its tokenizer is not the one it was trained with.
    """
    if not str(folder):
        raise ConfigError(
            "no base model is named: set base (policy and reward in PPO) to a finished run folder"
        )
    source = Path(folder) / "model"
    if not (source / "model.json").exists():
        raise ConfigError(f"{folder} holds no finished model: run the stage that makes it first")
    facts = json.loads((source / "model.json").read_text("utf-8"))
    tokenizer = Tokenizer.load(source / "tokenizer.model")
    if tokenizer.hash != facts["tokenizer_hash"]:
        raise ConfigError(
            f"{source / 'tokenizer.model'} has the hash {tokenizer.hash[:16]}..., but the model was "
            f"trained with {facts['tokenizer_hash'][:16]}...: put the original tokenizer back"
        )
    definition = ModelDefinition(KINDS[facts["kind"]], from_json(facts["config"]))
    shardings = parameter_shardings(mesh, definition.abstract, definition.axes)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        definition.abstract,
        shardings,
    )
    return TrainedModel(definition, load_tree(source / "params", abstract), tokenizer)
