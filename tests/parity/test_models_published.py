"""The systems of the lineage with random weights, logits and gradients, against transformers and torch."""

import jax.numpy as jnp
import lineage
import numpy as np
import pytest
from torch_names import bert_names, gpt1_names, llama_names, load, transformer_names
from torch_parity import check_parity

from gptjax.models.rotary import RotaryScaling, scale_frequencies

torch = pytest.importorskip("torch", reason="torch is not installed (pip install gptjax[parity])")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (gptjax[parity])")

NO_DROPOUT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}


def test_gpt1():
    case = lineage.gpt1_case()
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 16, "vocab_size": lineage.V}
    theirs = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**shape, **NO_DROPOUT))
    load(theirs, gpt1_names(case[1]), tied=["lm_head.weight"])
    theirs.tie_weights()
    check_parity("gpt1", case, theirs, gpt1_names, theirs(torch.tensor(lineage.TOKENS)).logits)


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
        vocab_size=lineage.V,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        rope_parameters=rope(500_000.0, 256),
    )
    theirs = transformers.LlamaForCausalLM(config)
    load(theirs, llama_names(case[1]))
    check_parity("llama31", case, theirs, llama_names, theirs(torch.tensor(lineage.TOKENS)).logits)


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


@pytest.mark.parametrize(
    ("name", "ours", "theirs"), [("bert", "gelu", "gelu_new"), ("bert_erf", "gelu_erf", "gelu")]
)
def test_bert(name, ours, theirs):
    case, rows = lineage.bert_case(ours), lineage.bert_inputs()
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    shape |= {"vocab_size": lineage.V, "max_position_embeddings": 16}
    # With a padding id torch withholds the gradient of that token's embedding, which padding here does not
    # use.
    config = transformers.BertConfig(**shape, **dropouts, hidden_act=theirs, pad_token_id=None)
    model = transformers.BertForPreTraining(config)
    load(model, bert_names(case[1]), tied=[f"cls.predictions.decoder.{x}" for x in ("weight", "bias")])
    model.tie_weights()
    types, mask = (torch.tensor(rows[name]) for name in ("token_types", "segment_ids"))
    out = model(torch.tensor(lineage.TOKENS), token_type_ids=types, attention_mask=mask)
    tokens = out.prediction_logits
    expected = [tokens[0], tokens[1, :-5], out.seq_relationship_logits]
    check_parity(name, case, model, bert_names, expected)


class TorchTransformer(torch.nn.Module):
    """`torch.nn.Transformer` between embedding and logits as in Vaswani et al. 2017, sections 3.4 and 3.5."""

    def __init__(self):
        super().__init__()
        shape = {"d_model": 16, "nhead": 4, "num_encoder_layers": 2, "num_decoder_layers": 2}
        self.stacks = torch.nn.Transformer(
            **shape, dim_feedforward=64, dropout=0.0, layer_norm_eps=1e-6, batch_first=True
        )
        # torch adds a norm after each stack, which the paper does not have.
        self.stacks.encoder.norm = self.stacks.decoder.norm = None
        self.table = torch.nn.Parameter(torch.zeros(lineage.V, 16))

    def embed(self, tokens):
        angles = np.arange(tokens.shape[1])[:, None] / 10_000 ** (2 * np.arange(8) / 16)
        signal = np.zeros((tokens.shape[1], 16), np.float32)
        signal[:, 0::2], signal[:, 1::2] = np.sin(angles), np.cos(angles)
        return self.table[torch.tensor(tokens)] * 4.0 + torch.tensor(signal)

    def forward(self, sources, targets, source_ids, target_ids):
        length = targets.shape[1]
        hidden = self.stacks(
            self.embed(sources),
            self.embed(targets),
            tgt_mask=torch.triu(torch.ones(length, length, dtype=torch.bool), 1),
            src_key_padding_mask=torch.tensor(source_ids == 0),
            tgt_key_padding_mask=torch.tensor(target_ids == 0),
            memory_key_padding_mask=torch.tensor(source_ids == 0),
        )
        return hidden @ self.table.T


def test_transformer():
    case, theirs = lineage.transformer_case(), TorchTransformer()
    biases = [name for name in theirs.state_dict() if name.endswith(("in_proj_bias", "out_proj.bias"))]
    load(theirs, transformer_names(case[1]), tied=biases)
    for name in biases:
        assert not theirs.state_dict()[name].any(), "torch starts attention biases at 0"
    logits = theirs(*lineage.transformer_inputs())
    check_parity("transformer", case, theirs, transformer_names, [logits[0], logits[1, :-4]])
