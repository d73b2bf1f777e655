"""`gptjax export --to hf`: the model of a run as a Hugging Face folder that `transformers` reads."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gptjax.config import ConfigError
from gptjax.data.chat_templates import stop_ids
from gptjax.data.tokenizers import text_start_id
from gptjax.interop.generation_config import generation_config
from gptjax.interop.huggingface_config import GELUS
from gptjax.interop.names import entries, tensor_shape, write_tensors
from gptjax.interop.safetensors import SINGLE, write_safetensors
from gptjax.interop.tables import TABLES
from gptjax.interop.tokenizer_files import write_tokenizer
from gptjax.models.encoder import EncoderConfig
from gptjax.models.functional import Params
from gptjax.models.transformer import DecoderConfig
from gptjax.serving.chat_model import MODEL_FOLDERS
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages.handover import TrainedModel, load_model, model_kind

# What a decoder must be to have a class in transformers.
_GPT = {"norm": "layernorm", "positions": "learned", "activation": "gelu", "bias": True}
_DENSE = {"attention_band": None}
STYLES = {
    "gpt2": {**_GPT, **_DENSE, "norm_place": "pre"},
    "gpt1": {**_GPT, **_DENSE, "norm_place": "post", "tied": True},
    "llama": {
        **_DENSE,
        "norm": "rmsnorm",
        "positions": "rotary",
        "activation": "swiglu",
        "bias": False,
        "norm_place": "pre",
    },
}
MODEL_TYPES = {"gpt1": "openai-gpt"}
CLASSES = {"gpt1": "OpenAIGPT", "gpt2": "GPT2", "llama": "Llama", "bert": "Bert"}
HEADS = {"scalar": "ForSequenceClassification", "masked": "ForPreTraining", "encoder": "Model"}


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
    folder = model_folder(run)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} is not an empty folder: name another --output")
    model, kind = load_model(folder, make_mesh(MeshConfig())), model_kind(folder)
    config, params = model.definition.config, model.params
    family = family_of(config, folder)
    if kind not in TABLES[family, "hf"].heads:
        raise ConfigError(f"a {kind} model such as that of {folder} cannot be exported")
    if kind == "scalar":
        params, note = _without_bias(params, family)
        yield from note
    output.mkdir(parents=True, exist_ok=True)
    wanted = entries(family, "hf", config, kind)
    shapes = {entry.name: tensor_shape(entry, model.definition) for entry in wanted}
    write_safetensors(output / SINGLE, shapes, write_tensors(wanted, params))
    write_tokenizer(output, model.tokenizer, config.context_length, model.chat)
    _write_json(output / "config.json", config_json(model, family, kind))
    if kind == "language":
        stops = stop_ids(model.tokenizer, model.chat)
        generation = generation_config(model.tokenizer, stops, model.chat.sampling)
        _write_json(output / "generation_config.json", generation)
    yield f"exported {folder} ({family}, {model.definition.parameter_count:,} parameters) into {output}"


def model_folder(run: Path) -> Path:
    """The folder of a run's newest model. Raises ConfigError when it has none."""
    folder = next((run / name for name in MODEL_FOLDERS if model_kind(run / name)), None)
    if folder is None:
        raise ConfigError(f"{run} holds no finished model yet: let its stage run to the end")
    return folder


def family_of(config: DecoderConfig | EncoderConfig, folder: Path) -> str:
    """The class of models in `transformers` that computes the same.

    Raises:
        ConfigError: there is none; the sentence names what differs from the nearest.
    """
    if isinstance(config, EncoderConfig):
        return "bert"
    if not isinstance(config, DecoderConfig):
        raise ConfigError(f"the model of {folder} is neither a decoder nor BERT's encoder, as exports are")
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
        faults["gpt1"].append(f"kv_heads = {config.kv_heads}")
    if config.inner_width != 4 * config.width:
        faults["gpt1"].append(f"mlp_width = {config.mlp_width}")
    nearest = min(faults, key=lambda family: len(faults[family]))
    if faults[nearest]:
        raise ConfigError(
            f"the model of {folder} has no class in transformers: it would be {nearest} but for "
            f"{', '.join(faults[nearest])}"
        )
    return nearest


def config_json(model: TrainedModel, family: str, kind: str) -> dict:
    """`config.json`."""
    config, tokenizer = model.definition.config, model.tokenizer
    decoder = {"gpt2": "LMHeadModel", "gpt1": "LMHeadModel", "llama": "ForCausalLM"}
    head = decoder[family] if kind == "language" else HEADS[kind]
    shared = {
        "architectures": [CLASSES[family] + head],
        "model_type": MODEL_TYPES.get(family, family),
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": family == "bert" or config.tied,
        "dtype": "float32",
        "pad_token_id": tokenizer.pad_id,
    }
    if family in ("gpt2", "llama"):
        shared |= {"bos_token_id": text_start_id(tokenizer), "eos_token_id": tokenizer.end_of_text_id}
    if kind == "scalar":
        shared |= {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    return shared | {"gpt1": _gpt, "gpt2": _gpt, "llama": _llama, "bert": _bert}[family](config)


def _gpt(config: DecoderConfig) -> dict:
    common = {
        "n_positions": config.context_length,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "layer_norm_epsilon": config.norm_epsilon,
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), config.dropout),
    }
    if config.norm_place == "post":
        return common | {"afn": "gelu"}  # so GPT-1's class calls the tanh form
    return common | {"n_inner": config.inner_width, "activation_function": "gelu_new"}


def _llama(config: DecoderConfig) -> dict:
    scaling, rope = config.rotary_scaling, {"rope_type": "default"}
    if scaling is not None:
        rope = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return {
        "max_position_embeddings": config.context_length,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.inner_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        # The first two are read by transformers 4, the last by 5.
        "rope_theta": config.rotary_theta,
        "rope_scaling": rope if scaling is not None else None,
        "rope_parameters": {**rope, "rope_theta": config.rotary_theta},
        "attention_bias": False,
        "mlp_bias": False,
    }


def _bert(config: EncoderConfig) -> dict:
    return {
        "max_position_embeddings": config.context_length,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.inner_width,
        "type_vocab_size": config.token_types,
        "hidden_act": next(theirs for theirs, ours in GELUS.items() if ours == config.activation),
        "layer_norm_eps": config.norm_epsilon,
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), config.dropout),
    }


def _without_bias(params: Params, family: str) -> tuple[Params, list[str]]:
    """The scalar model in the form of `transformers`, whose head has no bias, and what to say about it.

    The bias goes into the bias of the last norm, along the head: `head . (norm + c * head)` is larger by
    `c * |head|^2`. LLaMA's norms have no bias.
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
        f"the classifier of {CLASSES[family]} has no bias: its scores are lower than gptjax's rewards by "
        f"{bias:.6g}"
    ]


def _write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
