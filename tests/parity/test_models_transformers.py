"""GPT-2 and LLaMA with random weights, logits and gradients, against transformers."""

import lineage
import pytest
from torch_names import gpt2_names, llama_names, load
from torch_parity import check_parity

torch = pytest.importorskip("torch", reason="torch is not installed (pip install gptjax[parity])")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (gptjax[parity])")


def test_gpt2():
    case = lineage.gpt2_case()
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 16, "vocab_size": lineage.V}
    dropouts = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    config = transformers.GPT2Config(**shape, **dropouts, bos_token_id=0, eos_token_id=0)
    theirs = transformers.GPT2LMHeadModel(config)
    load(theirs, gpt2_names(case[1]), tied=["lm_head.weight"])
    theirs.tie_weights()
    check_parity("gpt2", case, theirs, gpt2_names, theirs(torch.tensor(lineage.TOKENS)).logits)


@pytest.mark.parametrize(("name", "kv_heads"), [("llama", None), ("llama_grouped", 2)])
def test_llama(name, kv_heads):
    case = lineage.llama_case(kv_heads)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    config = transformers.LlamaConfig(
        **shape,
        num_key_value_heads=kv_heads,
        vocab_size=lineage.V,
        max_position_embeddings=16,
        rms_norm_eps=1e-6,
    )
    theirs = transformers.LlamaForCausalLM(config)
    load(theirs, llama_names(case[1]))
    check_parity(name, case, theirs, llama_names, theirs(torch.tensor(lineage.TOKENS)).logits)
