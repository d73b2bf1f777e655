"""Reading Hugging Face folders: `config.json`, the tensors, the tokenizer and the chat template."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gptjax.data.quality import DataError
from gptjax.data.tokenizer_json import read_bounded
from gptjax.interop import huggingface_config
from gptjax.interop.huggingface_config import Settings
from gptjax.interop.names import Entry, entries
from gptjax.interop.safetensors import SafetensorsFolder, read_json
from gptjax.models.encoder import EncoderConfig
from gptjax.models.transformer import DecoderConfig

# Tensors of old checkpoints that are no parameters: masks, counts and wavelengths.
BUFFERS = re.compile(
    r"(.*\.)?(h\.\d+\.attn\.(masked_)?bias|rotary_emb\.inv_freq|position_ids|token_type_ids)"
)
HEADS = {
    "ForCausalLM": "language",
    "LMHeadModel": "language",
    "ForSequenceClassification": "scalar",
    "ForPreTraining": "masked",
    "ForMaskedLM": "masked",
    "BertModel": "encoder",
}
# What folders of BERT may have or lack: the head of the next sentence, and the pooler that it reads.
OPTIONAL = ("bert.pooler.", "cls.seq_relationship.")


@dataclass(frozen=True)
class Style:
    """How the checkpoints of one `model_type` are written.

    Attributes:
        family: key of `TABLES`.
        config: from the settings.
        prefix: of all tensors but the head's, which files that were saved without the head lack.
        tied: what holds the embedding once more -> the tensor that it repeats.
        kinds: what it can be.
    """

    family: str
    config: Callable
    prefix: str
    tied: dict[str, str]
    kinds: tuple[str, ...] = ("language", "scalar")


_LLAMA = Style(
    "llama", huggingface_config.llama_config, "model.", {"lm_head.weight": "model.embed_tokens.weight"}
)
STYLES = {
    "gpt2": Style(
        "gpt2", huggingface_config.gpt2_config, "transformer.", {"lm_head.weight": "transformer.wte.weight"}
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "openai-gpt": Style(
        "gpt1",
        huggingface_config.gpt1_config,
        "transformer.",
        {"lm_head.weight": "transformer.tokens_embed.weight"},
    ),
    "bert": Style(
        "bert",
        huggingface_config.bert_config,
        "bert.",
        {
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        kinds=("masked", "encoder"),
    ),
}


@dataclass(frozen=True)
class FolderModel:
    """A model whose files have been checked.

    Attributes:
        kind: as in `stages.handover`.
        config: what it is.
        tensors: its numbers.
        wanted: what each tensor is.
        notes: what there is to say about it.
    """

    kind: str
    config: DecoderConfig | EncoderConfig
    tensors: SafetensorsFolder
    wanted: list[Entry]
    notes: list[str]


def read_folder(folder: Path) -> FolderModel:
    """Checks a folder.

    Raises:
        DataError: a file is missing or damaged, or the model has a part that gptjax does not have.
    """
    settings = Settings(folder / "config.json")
    style = STYLES.get(str(settings.get("model_type")))
    if style is None:
        raise DataError(
            f"{settings.path} has the model_type {settings.get('model_type')!r}: {', '.join(STYLES)} can "
            "be imported"
        )
    kind, config = _kind(settings, style), style.config(settings)
    tensors = SafetensorsFolder(folder)
    tensors.rename(_names(tensors, style))
    if config.layers > len(tensors.shapes()):
        raise DataError(f"{folder} has {len(tensors.shapes())} tensors, too few for {config.layers} layers")
    if style.family == "bert" or config.tied:
        _drop_tied_copies(tensors, style)
    wanted = entries(style.family, "hf", config, kind)
    if style.family == "bert":
        wanted = _bert_heads(tensors, kind, wanted, settings.notes)
    return FolderModel(kind, config, tensors, wanted, settings.notes)


def read_template(folder: Path) -> str:
    """The chat template, as text; of several the one called default; "" when there is none.

    Raises:
        DataError: its file is larger than such a file is.
    """
    if (folder / "chat_template.jinja").is_file():
        return read_bounded(folder / "chat_template.jinja").decode("utf-8", errors="replace")
    if not (folder / "tokenizer_config.json").is_file():
        return ""
    template = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else ""
    return template if isinstance(template, str) else ""


def _kind(settings: Settings, style: Style) -> str:
    architectures = settings.get("architectures") or [""]
    name = architectures[0] if isinstance(architectures, list) and architectures else ""
    kind = next((kind for end, kind in HEADS.items() if str(name).endswith(end)), None)
    if kind not in style.kinds:
        ends = [end for end, kind in HEADS.items() if kind in style.kinds]
        raise DataError(f"{settings.path} has the architecture {name!r}: it must end in {', '.join(ends)}")
    labels = settings.get("id2label", {})
    count = settings.get("num_labels", len(labels) if isinstance(labels, dict) else 0)
    if kind == "scalar" and count != 1:
        raise DataError(f"{settings.path} describes a classifier of {count} labels: a reward has one")
    return kind


def _names(tensors: SafetensorsFolder, style: Style) -> dict[str, str]:
    """Name in the file -> name in the table, without buffers."""
    names = [name for name in tensors.shapes() if not BUFFERS.fullmatch(name)]
    whole = any(name.startswith(style.prefix) for name in names)
    heads = ("lm_head.", "score.", "cls.")
    found = {}
    for name in names:
        new = name if whole or name.startswith(heads) else style.prefix + name
        # So called in checkpoints that were made of TensorFlow's.
        new = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", new)
        found[name] = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", new)
    if len(set(found.values())) < len(found):
        raise DataError(f"{tensors.path} holds a tensor twice, under an old and a new name")
    return found


def _drop_tied_copies(tensors: SafetensorsFolder, style: Style) -> None:
    """Leaves out copies of what is held once; what is no copy is an error."""
    shapes = tensors.shapes()
    for copy, original in style.tied.items():
        if copy not in shapes or original not in shapes:
            continue
        if shapes[copy] != shapes[original] or not (tensors.read(copy) == tensors.read(original)).all():
            raise DataError(
                f"{tensors.path}: config.json says tie_word_embeddings, but {copy} differs from {original}"
            )
        tensors.rename({name: name for name in tensors.shapes() if name != copy})


def _bert_heads(tensors: SafetensorsFolder, kind: str, wanted: list[Entry], notes: list[str]) -> list[Entry]:
    """The entries that the file has, after what no model has a place for has been left out of it, aloud."""
    names = tensors.shapes()
    if kind == "encoder":
        unused = [name for name in names if name.startswith((*OPTIONAL, "cls."))]
        if unused:
            notes.append(
                f"an encoder has no heads, so {len(unused)} tensors are left out: {', '.join(unused)}"
            )
            tensors.rename({name: name for name in names if name not in unused})
        return wanted
    absent = [e.name for e in wanted if e.name not in names and e.name.startswith(OPTIONAL)]
    if absent:
        notes.append(f"the file lacks the head of the next sentence, which is 0: {', '.join(absent)}")
    return [entry for entry in wanted if entry.name not in absent]
