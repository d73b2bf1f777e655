"""`gptjax export`: the model of a run as a Hugging Face folder that `transformers` reads."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gptjax.config import ConfigError
from gptjax.interop.names import entries, tensor_shape, write_tensors
from gptjax.interop.safetensors import SINGLE, write_safetensors
from gptjax.interop.tokenizer_files import write_tokenizer
from gptjax.models.functional import Params
from gptjax.models.transformer import DecoderConfig
from gptjax.serving.chat_model import MODEL_FOLDERS
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages.handover import TrainedModel, load_model, model_kind

# What a decoder must be to have a class in transformers.
STYLES = {
    "gpt2": {"norm": "layernorm", "positions": "learned", "activation": "gelu", "bias": True},
    "llama": {"norm": "rmsnorm", "positions": "rotary", "activation": "swiglu", "bias": False},
}


def export_model(run: str | Path, output: str | Path) -> Iterator[str]:
    """Writes `model.safetensors`, `config.json`, `generation_config.json` and the tokenizer's files.

    Args:
        run: a run folder: of one stage, or a road, whose newest chat model is taken.
        output: the folder to write, new or empty.

    Yields:
        what there is to say about it.

    Raises:
        ConfigError: the run has no finished model, `transformers` has no class for it, or the output is
            not empty.
    """
    run, output = Path(run), Path(output)
    folder = next((run / name for name in MODEL_FOLDERS if model_kind(run / name)), None)
    if folder is None:
        raise ConfigError(f"{run} holds no finished model yet: let its stage run to the end")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} is not an empty folder: name another --output")
    model = load_model(folder, make_mesh(MeshConfig()))
    config, scalar = model.definition.config, model_kind(folder) == "scalar"
    family = family_of(config, folder)
    params = model.params
    if scalar:
        params, note = _without_bias(params, family)
        yield from note
    output.mkdir(parents=True, exist_ok=True)
    wanted = entries(family, "hf", config, scalar=scalar)
    shapes = {entry.name: tensor_shape(entry, model.definition) for entry in wanted}
    write_safetensors(output / SINGLE, shapes, write_tensors(wanted, params))
    write_tokenizer(output, model.tokenizer, config.context_length, model.system_message)
    _write_json(output / "config.json", config_json(model, family, scalar))
    if not scalar:
        _write_json(output / "generation_config.json", _generation_json(model))
    yield f"exported {folder} ({family}, {model.definition.parameter_count:,} parameters) into {output}"


def family_of(config: DecoderConfig, folder: Path) -> str:
    """The class of models in `transformers` that computes the same.

    Raises:
        ConfigError: there is none; the sentence names what differs from the nearest.
    """
    faults = {
        family: [
            f"{name} = {getattr(config, name)}"
            for name, value in style.items()
            if getattr(config, name) != value
        ]
        for family, style in STYLES.items()
    }
    if config.key_heads != config.heads:
        faults["gpt2"].append(f"kv_heads = {config.kv_heads}")
    nearest = min(faults, key=lambda family: len(faults[family]))
    if faults[nearest]:
        raise ConfigError(
            f"the model of {folder} has no class in transformers: it would be {nearest} but for "
            f"{', '.join(faults[nearest])}"
        )
    return nearest


def config_json(model: TrainedModel, family: str, scalar: bool) -> dict:
    """`config.json`."""
    config, tokenizer = model.definition.config, model.tokenizer
    head = "ForSequenceClassification" if scalar else {"gpt2": "LMHeadModel", "llama": "ForCausalLM"}[family]
    shared = {
        "architectures": [{"gpt2": "GPT2", "llama": "Llama"}[family] + head],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        "dtype": "float32",
        "bos_token_id": tokenizer.end_of_text_id,
        "eos_token_id": tokenizer.end_of_text_id,
        "pad_token_id": tokenizer.pad_id,
    }
    if scalar:
        shared |= {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    if family == "gpt2":
        return shared | {
            "n_positions": config.context_length,
            "n_embd": config.width,
            "n_layer": config.layers,
            "n_head": config.heads,
            "n_inner": config.inner_width,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": config.norm_epsilon,
            **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), config.dropout),
        }
    return shared | {
        "max_position_embeddings": config.context_length,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.inner_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        # The former is read by transformers 4, the latter by 5.
        "rope_theta": config.rotary_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_theta},
        "attention_bias": False,
        "mlp_bias": False,
    }


def _generation_json(model: TrainedModel) -> dict:
    tokenizer = model.tokenizer
    stops = {tokenizer.end_of_text_id}
    if tokenizer.chatml:
        stops.add(tokenizer.im_end_id)
    return {"eos_token_id": sorted(stops), "pad_token_id": tokenizer.pad_id}


def _without_bias(params: Params, family: str) -> tuple[Params, list[str]]:
    """The scalar model in the form of `transformers`, whose head has no bias, and what to say about it.

    The bias goes into the last norm's bias, along the head: `head . (norm + c * head)` is larger by
    `c * |head|^2`.
    """
    bias, head = float(params["bias"][0]), np.asarray(params["head"], np.float64)[:, 0]
    if family == "gpt2":
        norm = params["decoder"]["norm"]
        moved = np.asarray(norm["bias"], np.float64) + bias * head / (head @ head)
        decoder = params["decoder"] | {"norm": norm | {"bias": moved.astype(np.float32)}}
        return params | {"decoder": decoder}, []
    if bias == 0:
        return params, []
    return params, [
        f"LLaMA's classifier has no bias: its scores are lower than gptjax's rewards by {bias:.6g}"
    ]


def _write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
