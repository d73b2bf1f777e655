"""The objectives of BERT and GPT-1, losses and gradients, against transformers."""

import lineage
import numpy as np
import objectives
import pytest
from golden import check_golden
from torch_names import bert_names, gpt1_names, linear_names, load
from torch_parity import check_gradients

torch = pytest.importorskip("torch", reason="torch is not installed (pip install gptjax[parity])")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (gptjax[parity])")


def test_bert():
    case, rows = objectives.bert_case(), objectives.bert_rows()
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        vocab_size=lineage.V, max_position_embeddings=16, hidden_act="gelu_new", pad_token_id=None,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = transformers.BertForPreTraining(config)
    load(model, bert_names(case[1]), tied=[f"cls.predictions.decoder.{x}" for x in ("weight", "bias")])
    model.tie_weights()
    labels = np.full(lineage.TOKENS.shape, -100)
    for row in range(2):
        real = np.asarray(rows["place_weights"][row]) == 1
        labels[row, np.asarray(rows["places"][row])[real]] = np.asarray(rows["targets"][row])[real]
    inputs = {"input_ids": "tokens", "token_type_ids": "token_types", "attention_mask": "segment_ids"}
    tensors = {name: torch.tensor(np.array(rows[ours])).long() for name, ours in inputs.items()}
    labels = torch.tensor(labels)
    out = model(**tensors, labels=labels, next_sentence_label=torch.tensor(np.array(rows["labels"])).long())
    out.loss.backward()
    found, gradient = objectives.figures(case)
    masked = torch.nn.functional.cross_entropy(out.prediction_logits.flatten(0, 1), labels.flatten()).item()
    stored = {"total": out.loss.item(), "masked_loss": masked, "next_sentence_loss": out.loss.item() - masked}
    assert {name: found[name] for name in stored} == pytest.approx(stored, abs=1e-5)
    check_golden("bert_objective", stored)
    check_golden("bert_objective_gradients", check_gradients(gradient, bert_names, model), size=None)


def double_heads_names(tree):
    """transformers' names -> the arrays of our tree."""
    return gpt1_names(tree["language"]) | linear_names("multiple_choice_head.summary", tree["head"])


def test_gpt1_with_double_heads():
    case, rows = objectives.gpt1_case(), objectives.choice_rows()
    config = transformers.OpenAIGPTConfig(
        n_embd=16, n_layer=2, n_head=4, n_positions=16, vocab_size=lineage.V,
        embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, summary_first_dropout=0.0,
    )  # fmt: skip
    model = transformers.OpenAIGPTDoubleHeadsModel(config)
    load(model, double_heads_names(case[1]), tied=["lm_head.weight"])
    model.tie_weights()
    tokens, ends, labels = (torch.tensor(np.array(rows[n])).long() for n in ("tokens", "ends", "labels"))
    out = model(tokens, mc_token_ids=ends, labels=tokens, mc_labels=labels)
    total = out.mc_loss + objectives.LM_WEIGHT * out.loss
    total.backward()
    found, gradient = objectives.figures(case)
    stored = {"total": total.item(), "choice_loss": out.mc_loss.item(), "language_loss": out.loss.item()}
    ours = {"total": found["total"], "choice_loss": found["loss"], "language_loss": found["language_loss"]}
    assert ours == pytest.approx(stored, abs=1e-5)
    check_golden("gpt1_objective", stored)
    check_golden("gpt1_objective_gradients", check_gradients(gradient, double_heads_names, model), size=None)
