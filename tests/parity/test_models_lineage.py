"""The systems of the lineage with random weights, logits and gradients, against transformers and torch."""

import jax
import jax.numpy as jnp
import lineage
import numpy as np
import pytest
from golden import check_golden

from gptjax.models.rotary import RotaryScaling, scale_frequencies

torch = pytest.importorskip("torch", reason="torch is not installed (pip install gptjax[parity])")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (gptjax[parity])")

NO_DROPOUT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}


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


def llama_names(tree):
    """As `gpt1_names`; transformers' Linear weights are [outputs, inputs]."""
    decoder = tree["decoder"]
    names = {
        "lm_head.weight": tree["unembedding"].T,
        "model.embed_tokens.weight": decoder["embedding"],
        "model.norm.weight": decoder["norm"]["scale"],
    }
    for i, block in enumerate(layers_of(decoder["blocks"])):
        layer = f"model.layers.{i}."
        names[layer + "input_layernorm.weight"] = block["attention_norm"]["scale"]
        names[layer + "post_attention_layernorm.weight"] = block["mlp_norm"]["scale"]
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")):
            names[f"{layer}self_attn.{theirs}_proj.weight"] = block["attention"][ours]["kernel"].T
        for name in ("gate", "up", "down"):
            names[f"{layer}mlp.{name}_proj.weight"] = block["mlp"][name]["kernel"].T
    return names


def load(theirs, names, tied=()):
    """Copies the arrays into a torch module; every tensor must be given, but for the tied ones."""
    weights = {name: torch.tensor(np.array(array)) for name, array in names.items()}
    missing = theirs.load_state_dict(weights, strict=False)
    assert missing.unexpected_keys == []
    assert set(missing.missing_keys) <= set(tied)


def check_parity(case, theirs, names, expected):
    """Logits within 1e-4, gradients within 1e-3 of the largest entry of their tensor.

    Args:
        case: (definition, params, `params -> logits`).
        theirs: the torch module.
        names: our tree -> its tensors by torch's names.
        expected: its logits, one tensor or a list.

    Returns:
        (torch's logits, torch's scalar).
    """
    _, params, logits_of = case
    expected = expected if isinstance(expected, list) else [expected]
    parts = [
        (torch.log_softmax(x, -1) * torch.tensor(lineage.direction(tuple(x.shape)))).mean() for x in expected
    ]
    scalar = sum(parts)
    scalar.backward()
    (_, logits), gradient = jax.jit(jax.value_and_grad(lineage.scalar_of(logits_of), has_aux=True))(params)
    for ours, true in zip(jax.tree.leaves(logits), expected, strict=True):
        np.testing.assert_allclose(ours, true.detach().numpy(), rtol=0, atol=1e-4)
    tensors = dict(theirs.named_parameters())
    for name, ours in names(gradient).items():
        true = tensors[name].grad.numpy()
        # Relative to the largest entry of the parameter's gradient: a key bias's is zero but for rounding.
        scale = max(np.abs(true).max(), 1e-5)
        np.testing.assert_allclose(ours, true, rtol=0, atol=1e-3 * scale, err_msg=name)
    return [x.detach().numpy() for x in expected], float(scalar.detach())


def test_gpt1():
    case = lineage.gpt1_case()
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 16, "vocab_size": 41}
    theirs = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**shape, **NO_DROPOUT))
    load(theirs, gpt1_names(case[1]), tied=["lm_head.weight"])
    theirs.tie_weights()
    found = check_parity(case, theirs, gpt1_names, theirs(torch.tensor(lineage.TOKENS)).logits)
    check_golden("gpt1_logits", lineage.sampled(*found))


def rope(theta, original_context):
    """transformers' description of Llama 3.1's published rotary scaling."""
    factors = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    context = {"original_max_position_embeddings": original_context}
    return {"rope_type": "llama3", "rope_theta": theta, **factors, **context}


def test_llama31():
    case = lineage.llama31_case()
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = transformers.LlamaConfig(
        **shape,
        intermediate_size=24,
        vocab_size=41,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        rope_parameters=rope(500_000.0, 256),
    )
    theirs = transformers.LlamaForCausalLM(config)
    load(theirs, llama_names(case[1]))
    found = check_parity(case, theirs, llama_names, theirs(torch.tensor(lineage.TOKENS)).logits)
    check_golden("llama31_logits", lineage.sampled(*found))


def test_rotary_scaling_at_the_published_size():
    config = transformers.LlamaConfig(
        hidden_size=4096, num_attention_heads=32, max_position_embeddings=131_072,
        rope_parameters=rope(500_000.0, 8192),
    )  # fmt: skip
    initialise = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"]
    theirs, attention_factor = initialise(config, torch.device("cpu"))
    frequency = 500_000.0 ** (-jnp.arange(0, 128, 2, dtype=jnp.float32) / 128)
    np.testing.assert_allclose(scale_frequencies(frequency, RotaryScaling()), theirs.numpy(), rtol=1e-5)
    assert attention_factor == 1.0
