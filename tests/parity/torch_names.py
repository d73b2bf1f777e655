"""Our parameter trees by the names that transformers and torch have for the same arrays."""

import jax
import numpy as np


def layers_of(blocks):
    """The stacked blocks one by one."""
    count = len(jax.tree.leaves(blocks)[0])
    return [jax.tree.map(lambda x, i=i: x[i], blocks) for i in range(count)]


def norm_names(prefix, norm):
    return {f"{prefix}.weight": norm["scale"], f"{prefix}.bias": norm["bias"]}


def conv_names(prefix, kernel, bias):
    """transformers' Conv1D kernels are [inputs, outputs] like ours."""
    return {f"{prefix}.weight": kernel, f"{prefix}.bias": bias}


def gpt1_names(tree):
    """transformers' names -> the arrays of our tree."""
    decoder = tree["decoder"]
    names = {"tokens_embed.weight": decoder["embedding"], "positions_embed.weight": decoder["positions"]}
    for i, block in enumerate(layers_of(decoder["blocks"])):
        attention, mlp = block["attention"], block["mlp"]
        qkv = [attention[name] for name in ("query", "key", "value")]
        fused = [np.concatenate([x[part] for x in qkv], -1) for part in ("kernel", "bias")]
        names |= conv_names(f"h.{i}.attn.c_attn", *fused)
        for theirs, ours in (
            ("attn.c_proj", attention["output"]),
            ("mlp.c_fc", mlp["up"]),
            ("mlp.c_proj", mlp["down"]),
        ):
            names |= conv_names(f"h.{i}.{theirs}", ours["kernel"], ours["bias"])
        names |= norm_names(f"h.{i}.ln_1", block["attention_norm"])
        names |= norm_names(f"h.{i}.ln_2", block["mlp_norm"])
    return {f"transformer.{name}": array for name, array in names.items()}


def gpt2_names(tree):
    """As `gpt1_names`, with the norm after the last block that pre-norm models have."""
    names = {
        name.replace("tokens_embed", "wte").replace("positions_embed", "wpe"): array
        for name, array in gpt1_names(tree).items()
    }
    return names | norm_names("transformer.ln_f", tree["decoder"]["norm"])


def linear_names(prefix, linear):
    """transformers' Linear weights are [outputs, inputs]."""
    return {f"{prefix}.weight": linear["kernel"].T, f"{prefix}.bias": linear["bias"]}


def bert_names(tree):
    """As `gpt1_names`."""
    encoder, names = tree["encoder"], {"cls.predictions.bias": tree["output_bias"]}
    for theirs, ours in (("word", "embedding"), ("position", "positions"), ("token_type", "token_types")):
        names[f"bert.embeddings.{theirs}_embeddings.weight"] = encoder[ours]
    names |= norm_names("bert.embeddings.LayerNorm", encoder["embedding_norm"])
    for i, block in enumerate(layers_of(encoder["blocks"])):
        layer, attention = f"bert.encoder.layer.{i}.", block["attention"]
        for name in ("query", "key", "value"):
            names |= linear_names(f"{layer}attention.self.{name}", attention[name])
        names |= linear_names(f"{layer}attention.output.dense", attention["output"])
        names |= norm_names(f"{layer}attention.output.LayerNorm", block["attention_norm"])
        names |= linear_names(f"{layer}intermediate.dense", block["mlp"]["up"])
        names |= linear_names(f"{layer}output.dense", block["mlp"]["down"])
        names |= norm_names(f"{layer}output.LayerNorm", block["mlp_norm"])
    names |= linear_names("bert.pooler.dense", tree["pooler"])
    names |= linear_names("cls.predictions.transform.dense", tree["transform"])
    names |= norm_names("cls.predictions.transform.LayerNorm", tree["transform_norm"])
    return names | linear_names("cls.seq_relationship", tree["next_sentence"])


def llama_names(tree):
    """As `gpt1_names`; LLaMA's maps have no biases and its output matrix is its own."""
    decoder = tree["decoder"]
    names = {"lm_head.weight": tree["unembedding"].T, "model.embed_tokens.weight": decoder["embedding"]}
    names["model.norm.weight"] = decoder["norm"]["scale"]
    for i, block in enumerate(layers_of(decoder["blocks"])):
        layer = f"model.layers.{i}."
        names[f"{layer}input_layernorm.weight"] = block["attention_norm"]["scale"]
        names[f"{layer}post_attention_layernorm.weight"] = block["mlp_norm"]["scale"]
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")):
            names[f"{layer}self_attn.{theirs}_proj.weight"] = block["attention"][ours]["kernel"].T
        for name in ("gate", "up", "down"):
            names[f"{layer}mlp.{name}_proj.weight"] = block["mlp"][name]["kernel"].T
    return names


def transformer_names(tree):
    """As `gpt1_names`, for `torch.nn.Transformer`, whose attention biases are left out: they are 0."""
    names, norms = {}, {"encoder": ["attention_norm", "mlp_norm"]}
    norms["decoder"] = ["attention_norm", "cross_norm", "mlp_norm"]
    attentions = {"attention": "self_attn", "cross_attention": "multihead_attn"}
    for side in ("encoder", "decoder"):
        for i, block in enumerate(layers_of(tree[side])):
            layer = f"{side}.layers.{i}."
            for ours in attentions.keys() & block.keys():
                qkv = [block[ours][name]["kernel"].T for name in ("query", "key", "value")]
                names[f"{layer}{attentions[ours]}.in_proj_weight"] = np.concatenate(qkv)
                names[f"{layer}{attentions[ours]}.out_proj.weight"] = block[ours]["output"]["kernel"].T
            names |= linear_names(f"{layer}linear1", block["mlp"]["up"])
            names |= linear_names(f"{layer}linear2", block["mlp"]["down"])
            for number, norm in enumerate(norms[side], 1):
                names |= norm_names(f"{layer}norm{number}", block[norm])
    return {f"stacks.{name}": array for name, array in names.items()} | {"table": tree["embedding"]}


def load(theirs, names, tied=()):
    """Copies the arrays into a torch module; every tensor must be given, but for the tied ones."""
    import torch

    weights = {name: torch.tensor(np.array(array)) for name, array in names.items()}
    missing = theirs.load_state_dict(weights, strict=False)
    assert missing.unexpected_keys == []
    assert set(missing.missing_keys) <= set(tied)
