"""What the metadata of a GGUF file says of its model: the configuration and the tokenizer."""

import math
import struct

import numpy as np

from gptjax.data.byte_level import ByteLevelTokenizer
from gptjax.data.quality import DataError
from gptjax.data.sentencepieces import SentencePieceTokenizer, from_lists
from gptjax.data.tokenizer_json import LLAMA3_CUTS
from gptjax.data.tokenizers import Tokenizer
from gptjax.interop.gguf import GgufFile
from gptjax.interop.names import MOST
from gptjax.models.rotary import RotaryScaling, scale_frequencies
from gptjax.models.transformer import DecoderConfig

# By how much each rotary frequency is divided; a tensor, but no parameter.
ROPE_FACTORS = "rope_freqs.weight"


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
    theta = key.number("rope.freq_base", 10_000.0)
    return _config(
        file,
        shape,
        kv_heads=key.count("attention.head_count_kv", shape["heads"]),
        norm="rmsnorm",
        norm_epsilon=key.number("attention.layer_norm_rms_epsilon"),
        positions="rotary",
        rotary_theta=theta,
        rotary_scaling=_scaling(file, theta, head_size),
        activation="swiglu",
        bias=False,
    )


def _scaling(file: GgufFile, theta: float, head_size: int) -> RotaryScaling | None:
    """The scaling that gives the file's factors; the file keeps these alone.

    Raises DataError when they are not those of Llama 3 with some factor.
    """
    if ROPE_FACTORS not in file.tensors:
        return None
    if file.tensors[ROPE_FACTORS].shape != (head_size // 2,):
        raise DataError(
            f"{file.path}: {ROPE_FACTORS} is not a factor for each of {head_size // 2} frequencies"
        )
    factors = file.read(ROPE_FACTORS)
    scaling = RotaryScaling(factor=max(1.0, round(float(factors.max()), 3)))
    if not np.allclose(rope_factors(scaling, theta, head_size), factors, rtol=1e-4):
        raise DataError(
            f"{file.path} scales rotary positions otherwise than Llama 3 does, which gptjax does not have"
        )
    return scaling


def rope_factors(scaling: RotaryScaling, theta: float, head_size: int) -> np.ndarray:
    """By how much the scaling divides each rotary frequency, float32 `[C / 2]`."""
    frequency = theta ** (-np.arange(0, head_size, 2, dtype=np.float32) / head_size)
    return (frequency / np.asarray(scale_frequencies(frequency, scaling))).astype(np.float32)


def tokenizer(file: GgufFile) -> ByteLevelTokenizer | SentencePieceTokenizer | Tokenizer:
    """The tokenizer in the metadata.

    Raises DataError when it is neither a byte-level BPE nor a SentencePiece model, or its lists do not fit
    together.
    """
    key = {name.removeprefix("tokenizer.ggml."): value for name, value in file.metadata.items()}
    kind, tokens, kinds = key.get("model"), key.get("tokens"), key.get("token_type")
    kinds = kinds.tolist() if isinstance(kinds, np.ndarray) else None
    if not isinstance(kind, str) or kind not in ("gpt2", "llama"):
        raise DataError(
            f"{file.path} has the tokenizer {kind!r}: byte-level ones ('gpt2') and SentencePiece models "
            "('llama') can be imported"
        )
    numbers = {"llama": key.get("scores"), "gpt2": key.get("merges")}[kind]
    if not isinstance(tokens, list) or not isinstance(numbers, np.ndarray if kind == "llama" else list):
        raise DataError(f"{file.path} lacks the pieces, the scores or the merges of its tokenizer")
    try:
        cut, begin = key.get("pre"), key.get("bos_token_id")
        begins = key.get("add_bos_token", kind == "llama" or cut in LLAMA3_CUTS)
        ends, padding = key.get("eos_token_id", -1), key.get("padding_token_id")
        prefix, begin = key.get("add_space_prefix", True), begin if begins else None
        ids = (ends, padding or 0, begin or 0)
        if not all(type(id) is int for id in ids) or type(prefix) is not bool or type(begins) is not bool:
            raise DataError("its special ids are no numbers")
        if kind == "gpt2":
            return ByteLevelTokenizer.from_pieces(tokens, kinds, numbers, cut, begin)
        special = {"end_of_text": ends, "padding": padding, "begin": begin}
        return from_lists(tokens, numbers.astype(np.float64).tolist(), kinds or [], prefix=prefix, **special)
    except DataError as error:
        raise DataError(f"{file.path}: {error}") from error


def stop_ids(file: GgufFile, ids: int) -> tuple[int, ...]:
    """The tokens that end a reply, where the file names them. Raises DataError when the model lacks one."""
    names = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    found = {name: file.metadata[name] for name in names if name in file.metadata}
    for name, id in found.items():
        if type(id) is not int or not 0 <= id < ids:
            raise DataError(
                f"{file.path}: the key {name!r} is {id!r}, but the model has the ids 0 to {ids - 1}"
            )
    return tuple(dict.fromkeys(found.values()))


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
