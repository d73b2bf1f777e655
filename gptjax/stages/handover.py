"""What one stage hands to the next: a model's configuration, its parameters and its tokenizer."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np

from gptjax.config import ConfigError, from_json, to_json
from gptjax.data.byte_level import ByteLevelTokenizer
from gptjax.data.chat_templates import PLAIN, ChatForm
from gptjax.data.metaspace import MetaspaceTokenizer
from gptjax.data.sentencepieces import SentencePieceTokenizer
from gptjax.data.tokenizers import Tokenizer
from gptjax.data.word_bpe import WordBpeTokenizer
from gptjax.data.wordpiece import WordPieceTokenizer
from gptjax.models.classifier import Classifier
from gptjax.models.encoder_decoder import EncoderDecoder
from gptjax.models.functional import ModelDefinition, Params
from gptjax.models.glm import GLM
from gptjax.models.heads import EncoderModel, LanguageModel, MaskedLanguageModel, ScalarModel
from gptjax.runs import write_json_atomic
from gptjax.sharding.distributed import wait_for_all
from gptjax.sharding.mesh import to_host
from gptjax.sharding.rules import parameter_shardings
from gptjax.training.checkpoint import load_tree, save_tree
from gptjax.training.integrity import to_disk

KINDS = {
    "language": LanguageModel,
    "scalar": ScalarModel,
    "masked": MaskedLanguageModel,
    "encoder": EncoderModel,
    "classifier": Classifier,
    "translation": EncoderDecoder,
    "glm": GLM,
}
# What to name where a model of the kind is needed.
MAKERS = {
    "language": "a pretrained or fine-tuned model",
    "scalar": "a reward model",
    "masked": "a masked language model",
    "encoder": "an encoder",
    "classifier": "a classifier",
    "translation": "a translator",
    "glm": "a model pretrained on blanks",
}
# A model folder holds one of their files.
TOKENIZERS = (
    Tokenizer,
    ByteLevelTokenizer,
    MetaspaceTokenizer,
    SentencePieceTokenizer,
    WordPieceTokenizer,
    WordBpeTokenizer,
)
AnyTokenizer = Tokenizer | ByteLevelTokenizer | SentencePieceTokenizer | WordPieceTokenizer | WordBpeTokenizer


@dataclass(frozen=True)
class TrainedModel:
    """A model that can be called.

    Attributes:
        definition: what it is.
        params: its numbers.
        tokenizer: the only tokenizer whose ids it understands.
        digest: sha256 of the parameters as they were saved.
        chat: how it is talked to.
    """

    definition: ModelDefinition
    params: Params
    tokenizer: AnyTokenizer
    digest: str
    chat: ChatForm = PLAIN


def parameter_digest(params: Params) -> str:
    """sha256 over names and bytes of all parameters, in hexadecimal, whatever their layout on devices."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        # The bytes in place: the largest leaf of a large model is many gigabytes.
        digest.update(np.ascontiguousarray(to_host(leaf)).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def save_model(
    folder: Path,
    kind: str,
    config,
    params: Params,
    tokenizer: AnyTokenizer,
    chat: ChatForm = PLAIN,
) -> None:
    """Writes `folder/model/` with `params/`, the tokenizer and `model.json`; the last makes it valid.

    Args:
        folder: a stage's run folder.
        kind: one of `KINDS`.
        config: the model's configuration.
        params: parameters to keep.
        tokenizer: stored beside them, its hash in `model.json`.
        chat: see `TrainedModel`.
    """
    target = folder / "model"
    make_empty(target)
    save_tree(target / "params", params)
    facts = {
        "kind": kind,
        "config": to_json(config),
        "tokenizer_hash": tokenizer.hash,
        "digest": parameter_digest(params),
        "chat": asdict(chat),
    }
    if jax.process_index() == 0:
        tokenizer.save(target / tokenizer.file_name)
        to_disk(*target.rglob("*"), target)
    write_json_atomic(target / "model.json", facts)


def make_empty(folder: Path) -> None:
    """Makes a folder anew, for all processes."""
    if jax.process_index() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    wait_for_all(f"{folder} is empty")


def model_kind(folder: str | Path) -> str | None:
    """The kind of the finished model in a run folder; None when there is none."""
    facts = Path(folder) / "model" / "model.json"
    return json.loads(facts.read_text("utf-8"))["kind"] if facts.exists() else None


def too_long(lengths: Mapping[str, int], context_length: int, model: str = "") -> str:
    """The sentence for the first of the named lengths that is beyond the context; "" when all fit.

    `model` says which one it is, such as its run folder, where there could be a doubt.
    """
    for name, length in lengths.items():
        if length > context_length:
            which = f" ({model})" if model else ""
            return (
                f"{name} = {length} is longer than the model's context_length = {context_length}{which}: "
                "lower it, or pretrain with a longer context"
            )
    return ""


def check_fit(lengths: Mapping[str, int], models: Mapping[str, TrainedModel]) -> None:
    """Refuses models that cannot read these lengths, or not each other's tokens.

    Args:
        lengths: key of the configuration -> tokens.
        models: run folder -> what it holds.

    Raises:
        ConfigError: naming the key and the folder, or both folders.
    """
    sizes = {folder: model.definition.config.context_length for folder, model in models.items()}
    _check_fit(lengths, sizes, {folder: model.tokenizer.hash for folder, model in models.items()})


def check_bases(lengths: Mapping[str, int], bases: Mapping[str, tuple[str, ...]]) -> None:
    """As `check_fit`, before anything is loaded: reads of each base its `model.json` alone.

    Args:
        lengths: key of the configuration -> tokens.
        bases: key of the configuration -> run folder, and the kinds of `KINDS` that will do.

    Raises:
        ConfigError: as `check_fit`, or a base is not there or of another kind; naming its key as well.
    """
    sizes, tokenizers = {}, {}
    for key, (folder, *kinds) in bases.items():
        try:
            facts = read_facts(folder, *kinds)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from error
        sizes[f"{key} = {folder}"] = from_json(facts["config"]).context_length
        tokenizers[f"{key} = {folder}"] = facts["tokenizer_hash"]
    _check_fit(lengths, sizes, tokenizers)


def _check_fit(lengths: Mapping[str, int], sizes: Mapping[str, int], tokenizers: Mapping[str, str]) -> None:
    """`check_fit` of context lengths and tokenizers' hashes by what the model is called."""
    first, *_ = sizes
    for model in sizes:
        if sentence := too_long(lengths, sizes[model], model):
            raise ConfigError(sentence)
        if tokenizers[model] != tokenizers[first]:
            raise ConfigError(
                f"the models of {first} and {model} have different tokenizers "
                f"({tokenizers[first][:16]}... and {tokenizers[model][:16]}...): use models that come of the "
                "same pretraining"
            )


def read_facts(folder: str | Path, *kinds: str) -> dict:
    """What `save_model` wrote of a model beside its parameters.

    Args:
        folder: a stage's run folder.
        kinds: of `KINDS`, those that will do; none takes any.

    Raises:
        ConfigError: there is no finished model, or it is of another kind.
    """
    if not str(folder):
        raise ConfigError(
            "no base model is named: set base (policy and reward in PPO) to a finished run folder"
        )
    file = Path(folder) / "model" / "model.json"
    if not file.exists():
        inside = sorted(path.parent.parent for path in Path(folder).glob("*/model/model.json"))
        remedy = f"name a stage of it, such as {inside[0]}" if inside else "run the stage that makes it first"
        raise ConfigError(f"{folder} holds no finished model: {remedy}")
    facts = json.loads(file.read_text("utf-8"))
    if kinds and facts["kind"] not in kinds:
        raise ConfigError(
            f"{folder} holds a {facts['kind']} model where a {' or '.join(kinds)} model is needed: name the "
            f"run folder of {MAKERS[kinds[0]]}"
        )
    return facts


def load_model(folder: str | Path, mesh: jax.sharding.Mesh, kind: str | None = None) -> TrainedModel:
    """Reads the model a stage left in its run folder, laid out on the mesh.

    Args:
        folder: a stage's run folder.
        mesh: from `make_mesh`.
        kind: one of `KINDS`; None takes any.

    Raises:
        ConfigError: there is no finished model, it is of another kind, or its tokenizer is not the one it was
            trained with.
    """
    facts, source = read_facts(folder, *([] if kind is None else [kind])), Path(folder) / "model"
    tokenizer = load_tokenizer(source)
    if tokenizer.hash != facts["tokenizer_hash"]:
        raise ConfigError(
            f"{source / tokenizer.file_name} has the hash {tokenizer.hash[:16]}..., but the model was "
            f"trained with {facts['tokenizer_hash'][:16]}...: put the original tokenizer back"
        )
    definition = ModelDefinition(KINDS[facts["kind"]], from_json(facts["config"]))
    shardings = parameter_shardings(mesh, definition.abstract, definition.axes)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        definition.abstract,
        shardings,
    )
    params = load_tree(source / "params", abstract)
    return TrainedModel(definition, params, tokenizer, facts["digest"], _chat_form(facts))


def _chat_form(facts: dict) -> ChatForm:
    """How the model is talked to; older runs name a system message at most."""
    stored = facts.get("chat") or {"system_message": facts.get("system_message", "")}
    return ChatForm(**stored | {"stop_ids": tuple(stored.get("stop_ids", ()))})


def load_tokenizer(model_folder: Path) -> AnyTokenizer:
    """The tokenizer of a model folder, of the kind its file says. Raises DataError as its `load`."""
    kinds = [kind for kind in TOKENIZERS if (model_folder / kind.file_name).exists()] or [Tokenizer]
    return kinds[0].load(model_folder / kinds[0].file_name)
