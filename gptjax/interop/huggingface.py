"""Reading Hugging Face folders: `config.json`, the tensors, the tokenizer and the chat template."""

import re
from dataclasses import dataclass
from pathlib import Path

from gptjax.data.byte_level import ByteLevelTokenizer, from_vocab_and_merges
from gptjax.data.quality import DataError
from gptjax.data.tokenizers import Tokenizer
from gptjax.interop.names import MOST
from gptjax.interop.safetensors import SafetensorsFolder, read_json
from gptjax.models.transformer import DecoderConfig

# Tensors of old checkpoints that are no parameters: masks and wavelengths, which follow from the shape.
BUFFERS = re.compile(r"(.*\.)?(h\.\d+\.attn\.(masked_)?bias|rotary_emb\.inv_freq)")
HEADS = {"ForCausalLM": "language", "LMHeadModel": "language", "ForSequenceClassification": "scalar"}
# model_type -> the table of names.
FAMILIES = {"gpt2": "gpt2", "llama": "llama", "mistral": "llama"}


@dataclass(frozen=True)
class FolderModel:
    """A model whose files have been checked.

    Attributes:
        family: "gpt2" or "llama".
        kind: "language" or "scalar".
        config: what it is.
        tensors: its numbers.
    """

    family: str
    kind: str
    config: DecoderConfig
    tensors: SafetensorsFolder


def read_folder(folder: Path) -> FolderModel:
    """Checks a folder.

    Raises:
        DataError: a file is missing or damaged, or the model has a part that `Decoder` does not have.
    """
    settings = _Settings(folder / "config.json")
    family = FAMILIES.get(str(settings.get("model_type")))
    if family is None:
        raise DataError(
            f"{settings.path} has the model_type {settings.get('model_type')!r}: {', '.join(FAMILIES)} can "
            "be imported"
        )
    kind = _kind(settings)
    tensors = SafetensorsFolder(folder)
    names = {name: name for name in tensors.shapes() if not BUFFERS.fullmatch(name)}
    if family == "gpt2" and not any(name.startswith("transformer.") for name in names):
        # What was saved without its head lacks the prefix.
        names = {old: old if old == "lm_head.weight" else f"transformer.{old}" for old in names}
    config = (_gpt2_config if family == "gpt2" else _llama_config)(settings)
    if config.layers > len(names):
        raise DataError(f"{folder} has {len(names)} tensors, too few for {config.layers} layers")
    tensors.rename(names)
    _drop_tied_copy(tensors, config, family, names)
    return FolderModel(family, kind, config, tensors)


def read_tokenizer(folder: Path) -> ByteLevelTokenizer | Tokenizer:
    """The tokenizer of a folder.

    `tokenizer.json`, or GPT-2's `vocab.json` and `merges.txt`; `tokenizer.model` where gptjax wrote it.

    Raises:
        DataError: there is none, or one of another kind.
    """
    if (folder / "tokenizer.model").is_file():
        try:
            return Tokenizer.load(folder / "tokenizer.model")
        except DataError as error:
            if not (folder / "tokenizer.json").is_file():
                raise DataError(
                    f"{error}; SentencePiece models of other programs cannot be imported"
                ) from error
    if (folder / "tokenizer.json").is_file():
        return ByteLevelTokenizer.load(folder / "tokenizer.json")
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if vocab.is_file() and merges.is_file():
        return from_vocab_and_merges(read_json(vocab), merges)
    raise DataError(f"{folder} holds no tokenizer.json: copy it from where the model comes from")


def read_template(folder: Path) -> str:
    """The chat template, as text; "" when there is none."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8", errors="replace")
    if (folder / "tokenizer_config.json").is_file():
        template = read_json(folder / "tokenizer_config.json").get("chat_template")
        return template if isinstance(template, str) else ""
    return ""


def _kind(settings: "_Settings") -> str:
    architectures = settings.get("architectures") or [""]
    name = architectures[0] if isinstance(architectures, list) and architectures else ""
    kind = next((kind for end, kind in HEADS.items() if str(name).endswith(end)), None)
    if kind is None:
        raise DataError(f"{settings.path} has the architecture {name!r}: it must end in {', '.join(HEADS)}")
    labels = settings.get("id2label", {})
    count = settings.get("num_labels", len(labels) if isinstance(labels, dict) else 0)
    if kind == "scalar" and count != 1:
        raise DataError(f"{settings.path} describes a classifier of {count} labels: a reward has one")
    return kind


def _gpt2_config(settings: "_Settings") -> DecoderConfig:
    settings.must_be("activation_function", "gelu_new", "gelu_pytorch_tanh")
    settings.must_be("scale_attn_weights", True)
    settings.must_be("scale_attn_by_inverse_layer_idx", False)
    settings.must_be("add_cross_attention", False)
    return settings.config(
        vocab_size=settings.count("vocab_size"),
        context_length=settings.count("n_positions", 1024),
        width=settings.count("n_embd"),
        layers=settings.count("n_layer"),
        heads=settings.count("n_head"),
        mlp_width=settings.count("n_inner") if settings.get("n_inner") is not None else None,
        norm_epsilon=settings.get("layer_norm_epsilon", 1e-5),
        tied=settings.get("tie_word_embeddings", True),
    )


def _llama_config(settings: "_Settings") -> DecoderConfig:
    width, heads = settings.count("hidden_size"), settings.count("num_attention_heads")
    context = settings.count("max_position_embeddings", 2048)
    for name in ("attention_bias", "mlp_bias"):
        settings.must_be(name, False)
    settings.must_be("hidden_act", "silu")
    settings.must_be("head_dim", width // heads, None)
    # transformers 5 keeps both of these in rope_parameters.
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else None
    if rope_type != "default":
        raise DataError(f"{settings.path} scales rotary positions ({rope!r}), which gptjax does not do")
    window = settings.get("sliding_window")
    if settings.get("use_sliding_window", True) and isinstance(window, int) and window < context:
        raise DataError(f"{settings.path} has a sliding_window of {window}, which gptjax does not have")
    return settings.config(
        vocab_size=settings.count("vocab_size"),
        context_length=context,
        width=width,
        layers=settings.count("num_hidden_layers"),
        heads=heads,
        kv_heads=settings.count("num_key_value_heads", heads),
        mlp_width=settings.count("intermediate_size"),
        norm="rmsnorm",
        norm_epsilon=settings.get("rms_norm_eps", 1e-6),
        positions="rotary",
        rotary_theta=rope.get("rope_theta", settings.get("rope_theta", 10_000.0)),
        activation="swiglu",
        bias=False,
        tied=settings.get("tie_word_embeddings", False),
    )


def _drop_tied_copy(tensors: SafetensorsFolder, config: DecoderConfig, family: str, names: dict) -> None:
    """Leaves out an output matrix that is the embedding once more; another one is an error."""
    embedding = {"gpt2": "transformer.wte.weight", "llama": "model.embed_tokens.weight"}[family]
    if not config.tied or "lm_head.weight" not in tensors.shapes() or embedding not in tensors.shapes():
        return
    if not (tensors.read("lm_head.weight") == tensors.read(embedding)).all():
        raise DataError(
            f"{tensors.path}: config.json says tie_word_embeddings, but lm_head.weight differs from "
            f"{embedding}"
        )
    tensors.rename({name: name for name in tensors.shapes() if name != "lm_head.weight"})


class _Settings:
    """`config.json`."""

    def __init__(self, path: Path):
        self.path, self.values = path, read_json(path)

    def get(self, name: str, default=None):
        """A value; null counts as absent."""
        value = self.values.get(name)
        return default if value is None else value

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number from 1 to MOST."""
        value = self.get(name, default)
        if type(value) is not int or not 1 <= value <= MOST:
            raise DataError(f"{self.path}: {name} is {value!r}, not a count")
        return value

    def must_be(self, name: str, *wanted) -> None:
        """Refuses another value, where there is one."""
        if self.get(name, wanted[0]) not in wanted:
            raise DataError(
                f"{self.path}: {name} is {self.get(name)!r}, but gptjax has only {wanted[0]!r} there"
            )

    def config(self, **fields) -> DecoderConfig:
        """The configuration of the decoder. Raises DataError for values that cannot be."""
        try:
            return DecoderConfig(**fields)
        except (ValueError, TypeError) as error:
            raise DataError(f"{self.path} describes a model that cannot be: {error}") from error
