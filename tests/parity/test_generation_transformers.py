"""Beam search of a language model against transformers' `generate`."""

import beam_case
import numpy as np
import pytest
from golden import check_golden
from test_models_published import NO_DROPOUT, gpt1_names, load

torch = pytest.importorskip("torch", reason="torch is not installed (pip install gptjax[parity])")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (gptjax[parity])")


def test_beam_search():
    """Without a length penalty, which transformers defines otherwise; its beams stop by the same bound."""
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 16, "vocab_size": 42}
    theirs = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**shape, **NO_DROPOUT))
    load(theirs, gpt1_names(beam_case.PARAMS), tied=["lm_head.weight"])
    theirs.tie_weights()
    theirs.eval()
    settings = transformers.GenerationConfig(
        num_beams=beam_case.BEAMS,
        length_penalty=0.0,
        early_stopping="never",
        max_new_tokens=beam_case.NEW,
        eos_token_id=beam_case.END,
        pad_token_id=beam_case.PAD,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    tokens, scores = np.full((len(beam_case.PROMPTS), beam_case.NEW), beam_case.PAD), []
    for row, prompt in enumerate(beam_case.PROMPTS):
        out = theirs.generate(torch.tensor([prompt]), settings)
        reply = out.sequences[0, len(prompt) :].numpy()
        tokens[row, : len(reply)] = reply
        scores.append(float(out.sequences_scores[0]))
    ours = beam_case.search()
    assert (tokens == beam_case.END).any(1).all(), "every output ends: the search, not the limit, stopped it"
    np.testing.assert_array_equal(ours.tokens, tokens)
    np.testing.assert_allclose(ours.scores, scores, rtol=1e-4)
    check_golden("beam_gpt1", beam_case.listed(tokens, scores))
