"""GPT-2 and LLaMA with random weights, logits and gradients, against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.models.families import gpt2, llama
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel

torch = pytest.importorskip("torch", reason="torch is not installed (pip install gptjax[parity])")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (gptjax[parity])")

TINY = {"vocab_size": 41, "context_length": 16, "width": 16, "layers": 2, "heads": 4}
TOKENS = np.random.default_rng(0).integers(0, 41, (2, 16))


def random_params(definition):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), definition.abstract)


def gpt2_names(tree):
    """transformers' names -> the arrays of our tree; its Conv1D kernels are [inputs, outputs] like ours."""
    decoder, names = tree["decoder"], {}
    names["wte.weight"], names["wpe.weight"] = decoder["embedding"], decoder["positions"]
    names["ln_f.weight"], names["ln_f.bias"] = decoder["norm"]["scale"], decoder["norm"]["bias"]
    for i in range(TINY["layers"]):
        block, h = jax.tree.map(lambda x, i=i: x[i], decoder["blocks"]), f"h.{i}."
        for theirs, ours in (("ln_1", "attention_norm"), ("ln_2", "mlp_norm")):
            names[f"{h}{theirs}.weight"], names[f"{h}{theirs}.bias"] = (
                block[ours]["scale"],
                block[ours]["bias"],
            )
        qkv = [block["attention"][name] for name in ("query", "key", "value")]
        names[h + "attn.c_attn.weight"] = np.concatenate([x["kernel"] for x in qkv], 1)
        names[h + "attn.c_attn.bias"] = np.concatenate([x["bias"] for x in qkv])
        maps = {
            "attn.c_proj": block["attention"]["output"],
            "mlp.c_fc": block["mlp"]["up"],
            "mlp.c_proj": block["mlp"]["down"],
        }
        for theirs, ours in maps.items():
            names[f"{h}{theirs}.weight"], names[f"{h}{theirs}.bias"] = ours["kernel"], ours["bias"]
    return {f"transformer.{name}": array for name, array in names.items()}


def llama_names(tree):
    """transformers' names -> the arrays of our tree; its Linear weights are [outputs, inputs]."""
    decoder = tree["decoder"]
    names = {
        "lm_head.weight": tree["unembedding"].T,
        "model.embed_tokens.weight": decoder["embedding"],
        "model.norm.weight": decoder["norm"]["scale"],
    }
    for i in range(TINY["layers"]):
        block, layer = jax.tree.map(lambda x, i=i: x[i], decoder["blocks"]), f"model.layers.{i}."
        names[layer + "input_layernorm.weight"] = block["attention_norm"]["scale"]
        names[layer + "post_attention_layernorm.weight"] = block["mlp_norm"]["scale"]
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")):
            names[f"{layer}self_attn.{theirs}_proj.weight"] = block["attention"][ours]["kernel"].T
        for name in ("gate", "up", "down"):
            names[f"{layer}mlp.{name}_proj.weight"] = block["mlp"][name]["kernel"].T
    return names


def gpt2_pair():
    ours = gpt2("124M", **TINY)
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 16, "vocab_size": 41}
    dropouts = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**shape, **dropouts, bos_token_id=0, eos_token_id=0)
    )
    return ours, theirs, gpt2_names


def llama_pair():
    ours = llama("7B", **TINY, kv_heads=2, mlp_width=24)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(
        **shape, intermediate_size=24, vocab_size=41, max_position_embeddings=16, rms_norm_eps=1e-6
    )
    return ours, transformers.LlamaForCausalLM(config), llama_names


@pytest.mark.parametrize("pair", [gpt2_pair, llama_pair])
def test_logits_and_gradients(pair):
    config, theirs, named = pair()
    definition = ModelDefinition(LanguageModel, config)
    params = random_params(definition)
    weights = {name: torch.tensor(np.array(array)) for name, array in named(params).items()}
    missing = theirs.load_state_dict(weights, strict=False)
    assert missing.unexpected_keys == []
    assert set(missing.missing_keys) <= {"lm_head.weight"}  # tied in GPT-2
    theirs.tie_weights()

    direction = np.random.default_rng(2).normal(size=(2, 16, 41)).astype(np.float32)
    expected = theirs(torch.tensor(TOKENS)).logits
    (torch.log_softmax(expected, -1) * torch.tensor(direction)).mean().backward()

    def loss(params):
        logits = definition.apply(params, jnp.asarray(TOKENS))
        return (jax.nn.log_softmax(logits) * direction).mean(), logits

    (_, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=0, atol=1e-4)
    theirs_gradient = dict(theirs.named_parameters())
    for name, ours in named(gradient).items():
        true = theirs_gradient[name].grad.numpy()
        # Relative to the largest entry of the parameter's gradient: a key bias's is zero but for rounding.
        scale = max(np.abs(true).max(), 1e-5)
        np.testing.assert_allclose(ours, true, rtol=0, atol=1e-3 * scale, err_msg=name)
