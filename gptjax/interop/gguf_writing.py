"""`gptjax export --to gguf`: a run's language model as one file, which llama.cpp reads.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the package `gguf` writes it.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from gptjax.config import ConfigError
from gptjax.data.byte_level import ByteLevelTokenizer
from gptjax.data.chat_templates import CHATML, stop_ids
from gptjax.data.metaspace import MetaspaceTokenizer
from gptjax.data.sentencepieces import SentencePieceTokenizer, parsed
from gptjax.data.tokenizer_json import CONTROL, NORMAL, UNUSED, USER_DEFINED, cut_name
from gptjax.data.tokenizers import Tokenizer, text_start_id
from gptjax.errors import require
from gptjax.interop.chat_template_texts import chat_template
from gptjax.interop.exporting import family_of, model_folder
from gptjax.interop.gguf_model import ROPE_FACTORS, rope_factors
from gptjax.interop.names import entries, tensor_shape, write_tensors
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages.handover import AnyTokenizer, TrainedModel, load_model

# Precision of the matrices -> its name and the file's number for it.
PRECISIONS = {"f32": ("F32", 0), "f16": ("F16", 1), "q8_0": ("Q8_0", 7)}
BLOCK = 32  # numbers of Q8_0 that share a scale
BPE = 2  # so SentencePiece numbers its kinds of models


def export_gguf(run: str | Path, output: str | Path, precision: str = "f32") -> Iterator[str]:
    """Writes one GGUF file with the tokenizer and the chat template in its metadata.

    Args:
        run: a run folder: of one stage, or a road, whose newest chat model is taken.
        output: the file, which must not exist.
        precision: of the matrices: "f32", "f16" or "q8_0"; norms, biases and positions are float32.

    Yields:
        what there is to say about it.

    Raises:
        ConfigError: the run has no finished language model of GPT-2's or LLaMA's style, its tokenizer has no
            form in GGUF, or the output exists.
        MissingPackage: `gguf` is not installed.
    """
    require("gguf")
    import gguf

    output, folder = Path(output), model_folder(Path(run))
    if output.exists():
        raise ConfigError(f"{output} exists: name another --output")
    model = load_model(folder, make_mesh(MeshConfig()), "language")
    config, family = model.definition.config, family_of(model.definition.config, folder)
    if family not in ("gpt2", "llama"):
        raise ConfigError(f"the model of {folder} is a {family}: GGUF has gpt2 and llama")
    wanted = entries(family, "gguf", config, "language")
    shapes = {entry.name: tensor_shape(entry, model.definition) for entry in wanted}
    kinds = {name: _kind(name, shape, precision) for name, shape in shapes.items()}
    stream = write_tensors(wanted, model.params)
    if config.rotary_scaling is not None:
        factors = rope_factors(config.rotary_scaling, config.rotary_theta, config.head_size)
        shapes[ROPE_FACTORS], kinds[ROPE_FACTORS] = factors.shape, "F32"
        stream = chain(stream, [(ROPE_FACTORS, factors)])
    writer = gguf.GGUFWriter(None, family)
    writer.add_file_type(PRECISIONS[precision][1])
    for key, value in metadata(model, family, folder).items():
        _add(writer, key, value)
    _write(writer, output, shapes, kinds, stream)
    left = [name for name, kind in kinds.items() if kind == "F16" and precision == "q8_0"]
    if left:
        yield f"{len(left)} matrices with rows that {BLOCK} does not divide are F16: {', '.join(left)}"
    count = f"{model.definition.parameter_count:,}"
    yield f"exported {folder} ({family}, {count} parameters, {precision}) into {output}"


def _write(writer, output: Path, shapes: dict, kinds: dict[str, str], stream: Iterable) -> None:
    """Announces the tensors and writes them as they come; the file appears when it is whole."""
    import gguf

    codes = {name: gguf.GGMLQuantizationType[kind] for name, kind in kinds.items()}
    for name, shape in shapes.items():
        per_block, block_bytes = gguf.GGML_QUANT_SIZES[codes[name]]
        size = math.prod(shape) // per_block * block_bytes
        writer.add_tensor_info(name, shape, np.dtype("f4"), size, codes[name])
    unfinished = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        writer.write_header_to_file(unfinished)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in stream:
            writer.write_tensor_data(gguf.quantize(tensor, codes[name]))
        writer.close()
        os.replace(unfinished, output)
    finally:
        unfinished.unlink(missing_ok=True)


def metadata(model: TrainedModel, family: str, folder: Path) -> dict:
    """All keys of the file but its architecture; strings, numbers and lists."""
    config, tokenizer = model.definition.config, model.tokenizer
    shape = {
        "vocab_size": config.vocab_size,
        "context_length": config.context_length,
        "embedding_length": config.width,
        "block_count": config.layers,
        "feed_forward_length": config.inner_width,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.key_heads,
    }
    if family == "llama":
        shape |= {
            "attention.layer_norm_rms_epsilon": config.norm_epsilon,
            "rope.freq_base": config.rotary_theta,
            "rope.dimension_count": config.head_size,
        }
    else:
        shape["attention.layer_norm_epsilon"] = config.norm_epsilon
    found = {"general.name": folder.absolute().name} | {f"{family}.{k}": value for k, value in shape.items()}
    found |= {
        f"tokenizer.ggml.{key}": value
        for key, value in tokenizer_lists(tokenizer, config.vocab_size, folder).items()
    }
    if tokenizer.chatml or model.chat.template not in CHATML:
        found["tokenizer.ggml.eot_token_id"] = stop_ids(tokenizer, model.chat)[0]
        found["tokenizer.chat_template"] = chat_template(model.chat)
    return found


def tokenizer_lists(tokenizer: AnyTokenizer, ids: int, folder: Path) -> dict:
    """The tokenizer as the lists of GGUF, filled up to as many ids as the model has.

    Raises:
        ConfigError: it has no form in GGUF.
    """
    if isinstance(tokenizer, ByteLevelTokenizer) and not isinstance(tokenizer, MetaspaceTokenizer):
        found = _byte_level(tokenizer, folder)
    elif isinstance(tokenizer, Tokenizer | SentencePieceTokenizer):
        found = _sentencepiece(tokenizer, folder)
    else:
        raise ConfigError(f"GGUF has no form for the {type(tokenizer).__name__} of {folder}: export to hf")
    for id in range(len(found["tokens"]), ids):
        found["tokens"].append(f"[PAD{id}]")
        found["token_type"].append(UNUSED)
        if "scores" in found:
            found["scores"].append(0.0)
    return found | {
        "eos_token_id": tokenizer.end_of_text_id,
        "bos_token_id": text_start_id(tokenizer),
        "padding_token_id": tokenizer.pad_id,
        "add_bos_token": tokenizer.bos_id is not None,
    }


def _byte_level(tokenizer: ByteLevelTokenizer, folder: Path) -> dict:
    description = json.loads(tokenizer.content)
    cut = cut_name(description)
    if cut is None:
        raise ConfigError(
            f"GGUF has no name for how the tokenizer of {folder} cuts or changes text: export to hf"
        )
    vocab, model = dict(description["model"]["vocab"]), description["model"]
    added = {entry["content"]: entry["id"] for entry in description.get("added_tokens") or []}
    vocab |= added
    tokens = [f"[PAD{id}]" for id in range(tokenizer.vocab_size)]
    kinds = [UNUSED] * len(tokens)
    for piece, id in vocab.items():
        plain = USER_DEFINED if piece in added else NORMAL
        tokens[id], kinds[id] = piece, CONTROL if piece in tokenizer.specials else plain
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {"model": "gpt2", "pre": cut, "tokens": tokens, "token_type": kinds, "merges": merges}


def _sentencepiece(tokenizer: Tokenizer | SentencePieceTokenizer, folder: Path) -> dict:
    proto = parsed(tokenizer.model)
    normalizer = proto.normalizer_spec
    if proto.trainer_spec.model_type != BPE or normalizer.precompiled_charsmap:
        raise ConfigError(
            f"the SentencePiece model of {folder} is not a BPE that leaves text as it is, as GGUF's "
            "'llama' is: export to hf"
        )
    return {
        "model": "llama",
        "tokens": [piece.piece for piece in proto.pieces],
        "scores": [piece.score for piece in proto.pieces],
        "token_type": [piece.type for piece in proto.pieces],
        "add_space_prefix": normalizer.add_dummy_prefix,
    }


def _kind(name: str, shape: tuple[int, ...], precision: str) -> str:
    """How a tensor is stored."""
    if len(shape) == 1 or name.startswith("position"):
        return "F32"
    kind = PRECISIONS[precision][0]
    return "F16" if kind == "Q8_0" and shape[-1] % BLOCK else kind


def _add(writer, key: str, value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
