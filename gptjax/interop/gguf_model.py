"""What the metadata of a GGUF file says of its model: the configuration and the tokenizer."""

import math
import struct

import numpy as np

from gptjax.data.byte_level import ByteLevelTokenizer
from gptjax.data.quality import DataError
from gptjax.interop.gguf import GgufFile
from gptjax.interop.names import MOST
from gptjax.models.transformer import DecoderConfig


def decoder_config(file: GgufFile) -> DecoderConfig:
    """The configuration of the model in a GGUF file of the architecture llama or gpt2.

    Raises DataError for another architecture, for what `Decoder` does not have, and for missing keys.
    """
    family = file.metadata.get("general.architecture")
    if not isinstance(family, str) or family not in ("llama", "gpt2"):
        raise DataError(f"{file.path} has the architecture {family!r}: llama and gpt2 can be imported")
    key = _Keys(file, f"{family}.")
    if "token_embd.weight" not in file.tensors:
        raise DataError(f"{file.path} has no tensor 'token_embd.weight': it is not a language model")
    shape = {
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "context_length": key.count("context_length"),
        "width": key.count("embedding_length"),
        "layers": key.count("block_count"),
        "heads": key.count("attention.head_count"),
        "mlp_width": key.count("feed_forward_length"),
        "tied": "output.weight" not in file.tensors,
    }
    # Before anything is made for each layer: a layer has tensors.
    if shape["layers"] > len(file.tensors):
        raise DataError(f"{file.path} has {len(file.tensors)} tensors, too few for {shape['layers']} layers")
    if family == "gpt2":
        return _config(file, shape, norm_epsilon=key.number("attention.layer_norm_epsilon", 1e-5))
    head_size = shape["width"] // shape["heads"]
    for name in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        key.must_be(name, head_size)
    key.must_be("expert_count", 0)
    key.must_be("rope.scaling.type", "none")
    return _config(
        file,
        shape,
        kv_heads=key.count("attention.head_count_kv", shape["heads"]),
        norm="rmsnorm",
        norm_epsilon=key.number("attention.layer_norm_rms_epsilon"),
        positions="rotary",
        rotary_theta=key.number("rope.freq_base", 10_000.0),
        activation="swiglu",
        bias=False,
    )


def tokenizer(file: GgufFile) -> ByteLevelTokenizer:
    """The tokenizer in the metadata.

    Raises DataError when it is not a byte-level BPE, or its lists do not fit together.
    """
    keys = {
        name: file.metadata.get(f"tokenizer.ggml.{name}") for name in ("model", "pre", "tokens", "merges")
    }
    if not isinstance(keys["model"], str) or keys["model"] != "gpt2":
        raise DataError(
            f"{file.path} has the tokenizer {keys['model']!r}: byte-level ones ('gpt2') can be imported"
        )
    if not isinstance(keys["tokens"], list) or not isinstance(keys["merges"], list):
        raise DataError(f"{file.path} lacks the pieces or the merges of its tokenizer")
    kinds = file.metadata.get("tokenizer.ggml.token_type")
    kinds = kinds.tolist() if isinstance(kinds, np.ndarray) else None
    try:
        return ByteLevelTokenizer.from_pieces(keys["tokens"], kinds, keys["merges"], keys["pre"])
    except DataError as error:
        raise DataError(f"{file.path}: {error}") from error


def _config(file: GgufFile, shape: dict, **style) -> DecoderConfig:
    try:
        return DecoderConfig(**shape, **style)
    except ValueError as error:
        raise DataError(f"{file.path} describes a model that cannot be: {error}") from error


class _Keys:
    """The metadata of one architecture, by key."""

    def __init__(self, file: GgufFile, prefix: str):
        self.file, self.prefix = file, prefix

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number, shortened to the digits that float32 has."""
        value = self.file.metadata.get(self.prefix + name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise DataError(f"{self.file.path}: the key {self.prefix + name!r} is {value!r}, not a number")
        return float(f"{struct.unpack('f', struct.pack('f', value))[0]:.7g}") if abs(value) < 3e38 else value

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number from 1 to MOST."""
        value = self.file.metadata.get(self.prefix + name, default)
        if type(value) is not int or not 1 <= value <= MOST:
            raise DataError(f"{self.file.path}: the key {self.prefix + name!r} is {value!r}, not a count")
        return value

    def must_be(self, name: str, wanted) -> None:
        """Refuses another value, where there is one."""
        value = self.file.metadata.get(self.prefix + name, wanted)
        if type(value) is not type(wanted) or value != wanted:
            raise DataError(
                f"{self.file.path}: {self.prefix + name} is {value!r}, but gptjax has only {wanted!r} there"
            )
