"""The names in published checkpoints: for each family and layout, which tensor holds which parameters."""

from dataclasses import dataclass

Path = tuple[str, ...]
Row = tuple[str, tuple[Path, ...], bool]


@dataclass(frozen=True)
class Table:
    """The tensors of one family in one layout.

    A row is a tensor's name, the paths of the parameters that are joined in it, and whether it is
    `[outputs, inputs]`, where our kernels are `[inputs, outputs]`.

    Attributes:
        trunk: what holds the blocks in our tree.
        tops: tensors that occur once.
        blocks: those of each layer, whose number stands for `{}`; their paths begin in the block.
        heads: kind of a model, as `stages.handover` has it -> the tensors of its head.
    """

    trunk: str
    tops: list[Row]
    blocks: list[Row]
    heads: dict[str, list[Row]]


def _norms(pairs: dict[str, Path], bias: bool) -> list[Row]:
    """Rows for the scales, and the biases, of norms."""
    rows = [(f"{name}.weight", ((*path, "scale"),), False) for name, path in pairs.items()]
    return rows + [(f"{name}.bias", ((*path, "bias"),), False) for name, path in pairs.items() if bias]


def _maps(pairs: dict[str, tuple[Path, ...]], transposed: bool, bias: bool) -> list[Row]:
    """Rows for linear maps."""
    rows = [
        (f"{name}.weight", tuple((*path, "kernel") for path in paths), transposed)
        for name, paths in pairs.items()
    ]
    biases = [
        (f"{name}.bias", tuple((*path, "bias") for path in paths), False) for name, paths in pairs.items()
    ]
    return rows + (biases if bias else [])


def _matrix(name: str, *path: str, transposed: bool = False) -> Row:
    return name, (path,), transposed


def _named(prefix: str, names: str) -> list[str]:
    return [prefix + name for name in names.split()]


_QUERY, _KEY, _VALUE, _OUT = (("attention", name) for name in ("query", "key", "value", "output"))
_UP, _GATE, _DOWN = (("mlp", name) for name in ("up", "gate", "down"))
_BLOCK_NORMS = ("attention_norm",), ("mlp_norm",)
_DECODER_HEADS = {
    "hf": {
        "language": [_matrix("lm_head.weight", "unembedding", transposed=True)],
        "scalar": [_matrix("score.weight", "head", transposed=True)],
    },
    "gguf": {"language": [_matrix("output.weight", "unembedding", transposed=True)]},
}


def _gpt(layout, embedding, positions, final, norms, maps, transposed) -> Table:
    """GPT-1 and GPT-2; `maps` are query-key-value, attention's output, up and down."""
    parts = ((_QUERY, _KEY, _VALUE), (_OUT,), (_UP,), (_DOWN,))
    tops = [_matrix(embedding, "decoder", "embedding"), _matrix(positions, "decoder", "positions")]
    tops += _norms({final: ("decoder", "norm")} if final else {}, True)
    blocks = _norms(dict(zip(norms, _BLOCK_NORMS, strict=True)), True)
    blocks += _maps(dict(zip(maps, parts, strict=True)), transposed, True)
    return Table("decoder", tops, blocks, _DECODER_HEADS[layout])


def _llama(layout, embedding, final, norms, maps) -> Table:
    """LLaMA; `maps` are query, key, value, output, gate, up and down."""
    parts = ((_QUERY,), (_KEY,), (_VALUE,), (_OUT,), (_GATE,), (_UP,), (_DOWN,))
    tops = [_matrix(embedding, "decoder", "embedding"), *_norms({final: ("decoder", "norm")}, False)]
    blocks = _norms(dict(zip(norms, _BLOCK_NORMS, strict=True)), False)
    blocks += _maps(dict(zip(maps, parts, strict=True)), True, False)
    return Table("decoder", tops, blocks, _DECODER_HEADS[layout])


def _bert() -> Table:
    """BERT, with the heads of masked tokens and of the next sentence."""
    tables = {"word": "embedding", "position": "positions", "token_type": "token_types"}
    tops = [
        _matrix(f"bert.embeddings.{theirs}_embeddings.weight", "encoder", ours)
        for theirs, ours in tables.items()
    ]
    tops += _norms({"bert.embeddings.LayerNorm": ("encoder", "embedding_norm")}, True)
    names = _named(
        "bert.encoder.layer.{}.",
        "attention.self.query attention.self.key attention.self.value attention.output.dense "
        "intermediate.dense output.dense",
    )
    maps = {name: (path,) for name, path in zip(names, (_QUERY, _KEY, _VALUE, _OUT, _UP, _DOWN), strict=True)}
    norms = _named("bert.encoder.layer.{}.", "attention.output.LayerNorm output.LayerNorm")
    blocks = _norms(dict(zip(norms, _BLOCK_NORMS, strict=True)), True) + _maps(maps, True, True)
    heads = {
        "bert.pooler.dense": (("pooler",),),
        "cls.predictions.transform.dense": (("transform",),),
        "cls.seq_relationship": (("next_sentence",),),
    }
    masked = _maps(heads, True, True) + _norms(
        {"cls.predictions.transform.LayerNorm": ("transform_norm",)}, True
    )
    masked.append(_matrix("cls.predictions.bias", "output_bias"))
    return Table("encoder", tops, blocks, {"masked": masked, "encoder": []})


TABLES = {
    # transformers' Conv1D kernels are [inputs, outputs] like ours.
    ("gpt1", "hf"): _gpt(
        "hf",
        "transformer.tokens_embed.weight",
        "transformer.positions_embed.weight",
        None,
        _named("transformer.h.{}.", "ln_1 ln_2"),
        _named("transformer.h.{}.", "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj"),
        transposed=False,
    ),
    ("gpt2", "hf"): _gpt(
        "hf",
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "transformer.ln_f",
        _named("transformer.h.{}.", "ln_1 ln_2"),
        _named("transformer.h.{}.", "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj"),
        transposed=False,
    ),
    ("gpt2", "gguf"): _gpt(
        "gguf",
        "token_embd.weight",
        "position_embd.weight",
        "output_norm",
        _named("blk.{}.", "attn_norm ffn_norm"),
        _named("blk.{}.", "attn_qkv attn_output ffn_up ffn_down"),
        transposed=True,
    ),
    ("llama", "hf"): _llama(
        "hf",
        "model.embed_tokens.weight",
        "model.norm",
        _named("model.layers.{}.", "input_layernorm post_attention_layernorm"),
        _named("model.layers.{}.self_attn.", "q_proj k_proj v_proj o_proj")
        + _named("model.layers.{}.mlp.", "gate_proj up_proj down_proj"),
    ),
    ("llama", "gguf"): _llama(
        "gguf",
        "token_embd.weight",
        "output_norm",
        _named("blk.{}.", "attn_norm ffn_norm"),
        _named("blk.{}.", "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down"),
    ),
    ("bert", "hf"): _bert(),
}
