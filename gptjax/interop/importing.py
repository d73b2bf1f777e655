"""`gptjax import`: a model from elsewhere becomes a run folder."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax

from gptjax.config import ConfigError, configclass
from gptjax.data.chat_templates import CHATML, TEMPLATES, ChatForm
from gptjax.data.quality import DataError
from gptjax.interop import gguf_model, huggingface
from gptjax.interop.chat_template_texts import recognised, system_message
from gptjax.interop.generation_config import read_generation_config
from gptjax.interop.gguf import GgufFile
from gptjax.interop.names import Entry, TensorSource, check_names, entries, read_parameters
from gptjax.interop.tokenizer_files import read_tokenizer
from gptjax.models.functional import ModelDefinition
from gptjax.runs import mark_done, open_run, stage_done
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.sharding.rules import parameter_shardings
from gptjax.stages.handover import KINDS, AnyTokenizer, save_model


@configclass
class ImportConfig:
    """What was imported.

    Attributes:
        source: the GGUF file or the folder.
    """

    source: str


@dataclass(frozen=True)
class ForeignModel:
    """A model whose files have been checked and whose numbers have not been read yet.

    Attributes:
        kind: key of `KINDS`.
        definition: what it is.
        tokenizer: its own.
        chat: how it is talked to.
        tensors: its numbers.
        wanted: what each tensor is.
        notes: what there is to say about it.
    """

    kind: str
    definition: ModelDefinition
    tokenizer: AnyTokenizer
    chat: ChatForm
    tensors: TensorSource
    wanted: list[Entry]
    notes: list[str] = field(default_factory=list)


def import_model(source: str | Path, folder: str | Path, mesh: MeshConfig | None = None) -> Path:
    """Reads a model and leaves it in a run folder, as a stage leaves its own.

    Args:
        source: a GGUF file, or a folder in Hugging Face's layout.
        folder: of the run.
        mesh: devices that hold the parameters until they are written; None for the host's memory.

    Returns:
        the run folder.

    Raises:
        ConfigError: there is no such source, the folder holds another run, or the mesh does not fit.
        DataError: the source is damaged, or a model that gptjax does not have.
    """
    begun, source, folder = time.monotonic(), Path(source), Path(folder)
    config = ImportConfig(source=str(source.absolute()))
    if stage_done(folder):
        return open_run(folder, config)
    model = open_foreign(source)
    places = host_shardings(model.definition) if mesh is None else mesh_shardings(model.definition, mesh)
    open_run(folder, config)
    for note in model.notes:
        print(f"note: {source}: {note}")
    params = read_parameters(model.tensors, model.wanted, model.definition, places)
    save_model(folder, model.kind, model.definition.config, params, model.tokenizer, model.chat)
    summary = {"seconds": time.monotonic() - begun, "parameters": model.definition.parameter_count}
    mark_done(folder, summary)
    return folder


def host_shardings(definition: ModelDefinition):
    """All parameters in the host's memory, where JAX may use it: an import needs no accelerator."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names the accelerator alone
        device = jax.local_devices()[0]
    host = jax.sharding.SingleDeviceSharding(device)
    return jax.tree.map(lambda _: host, definition.abstract)


def mesh_shardings(definition: ModelDefinition, mesh: MeshConfig):
    """All parameters where the rules put them on a mesh."""
    return parameter_shardings(make_mesh(mesh), definition.abstract, definition.axes)


def open_foreign(source: Path) -> ForeignModel:
    """Checks a source without reading its numbers; errors as `import_model`."""
    if not source.exists():
        raise ConfigError(f"there is nothing at {source}: name a GGUF file or a folder with config.json")
    model = huggingface_source(source) if source.is_dir() else gguf_source(source)
    ids, rows = model.tokenizer.vocab_size, model.definition.config.vocab_size
    if ids > rows:
        raise DataError(
            f"{source}: the tokenizer has {ids} ids, the model only {rows}: they do not belong together"
        )
    check_names(model.tensors, model.wanted, model.definition)
    return model


def gguf_source(path: Path) -> ForeignModel:
    """The language model in a GGUF file."""
    file = GgufFile(path)
    config, family = gguf_model.decoder_config(file), file.metadata["general.architecture"]
    definition = ModelDefinition(KINDS["language"], config)
    file.tensors.pop(gguf_model.ROPE_FACTORS, None)  # part of the configuration now
    tokenizer, wanted = gguf_model.tokenizer(file), entries(family, "gguf", config, "language")
    chat, notes = chat_form(str(file.metadata.get("tokenizer.chat_template", "")), tokenizer)
    chat = replace(chat, stop_ids=gguf_model.stop_ids(file, config.vocab_size))
    return ForeignModel("language", definition, tokenizer, chat, file, wanted, notes)


def huggingface_source(folder: Path) -> ForeignModel:
    """The model in a folder of Hugging Face's layout."""
    found = huggingface.read_folder(folder)
    definition, template = ModelDefinition(KINDS[found.kind], found.config), huggingface.read_template(folder)
    tokenizer = read_tokenizer(folder)
    chat, notes = chat_form(template, tokenizer)
    if found.kind == "language":
        stops, sampling = read_generation_config(folder, found.config.vocab_size)
        chat = replace(chat, stop_ids=stops, sampling=sampling)
    notes = found.notes + notes
    return ForeignModel(found.kind, definition, tokenizer, chat, found.tensors, found.wanted, notes)


def chat_form(template: str, tokenizer: AnyTokenizer) -> tuple[ChatForm, list[str]]:
    """How a model with this chat template, "" for none, is talked to, and what there is to say about it."""
    name = recognised(template, tokenizer)
    if name is not None:
        return ChatForm(system_message(template), name), []
    if not template:
        return ChatForm(), []
    known = ", ".join((CHATML[0], *TEMPLATES))
    so = "writes in ChatML, which it was not taught" if tokenizer.chatml else "cannot talk to it"
    return ChatForm(), [f"its chat template is none of those that gptjax has ({known}): gptjax chat {so}"]
