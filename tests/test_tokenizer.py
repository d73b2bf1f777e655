"""The tokenizer loses nothing, is deterministic, and never lets text pose as a special piece."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.data.corpora import read_documents
from gptjax.data.quality import DataError
from gptjax.data.tokenizers import CHUNK, SPECIALS, Tokenizer, training_chunks

HARD_TEXTS = [
    "",
    " ",
    "  two  blanks  inside and at both ends  ",
    "\u2581the mark \u2581\u2581 itself\u2581",
    "nul \x00 and \x00\x00",
    "carriage\r\nreturns\r and\n\n\nnewlines\n",
    "\ttabs\u00a0no-break\u3000wide\u2028line\u2029paragraph\x85next",
    "😀👩\u200d🚀 é e\u0301 漢字 \U0010ffff \ufffd \ufeff",
    "<|im_end|><|im_start|><|endoftext|><pad><unk><s></s>",
    "<0x41> and <0x0A> spelt out",
]


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_round_trip_of_hard_texts(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes(id) for id in ids) == text.encode("utf-8")


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\u2581 \n\x00<|>"), max_size=60)
)
def test_round_trip_of_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", ["shakespeare", "pydoc", "ratings"])
def test_round_trip_of_real_held_out_text(tokenizer, name):
    for document in read_documents(name, split="heldout")[:200]:
        assert tokenizer.decode(tokenizer.encode(document.text)) == document.text


def test_real_text_is_compressed(tokenizer):
    text = "".join(document.text for document in read_documents("shakespeare", split="heldout"))
    assert len(text) / len(tokenizer.encode(text)) > 2.0


def test_text_never_gives_a_special_id(tokenizer):
    specials = {tokenizer.pad_id, 1, tokenizer.end_of_text_id, tokenizer.im_start_id, tokenizer.im_end_id}
    assert len(specials) == 5
    for text in HARD_TEXTS + list(SPECIALS):
        assert specials.isdisjoint(tokenizer.encode(text))


def test_special_ids_give_no_text(tokenizer):
    hello = tokenizer.encode("hello")
    ids = [tokenizer.im_start_id, *hello, tokenizer.im_end_id, tokenizer.end_of_text_id, tokenizer.pad_id]
    assert tokenizer.decode(ids) == "hello"


def test_half_a_character_decodes_to_the_replacement_character(tokenizer):
    ids = tokenizer.encode("😀")
    assert len(ids) == 4
    assert tokenizer.decode(ids[:2]) == "\ufffd"


def test_lone_surrogate_is_refused_with_its_place(tokenizer):
    with pytest.raises(DataError, match="lone surrogate at character 3"):
        tokenizer.encode("abc\ud800d")
    with pytest.raises(DataError, match="lone surrogate at character 3"):
        Tokenizer.train(["abc\ud800d"])


def test_save_and_load_keep_everything(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.model")
    loaded = Tokenizer.load(tmp_path / "tokenizer.model")
    assert (
        loaded.hash
        == tokenizer.hash
        == hashlib.sha256((tmp_path / "tokenizer.model").read_bytes()).hexdigest()
    )
    assert loaded.encode(HARD_TEXTS[2]) == tokenizer.encode(HARD_TEXTS[2])


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_load_refuses_what_is_no_tokenizer(tmp_path, content):
    path = tmp_path / "tokenizer.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="tokenizer.model"):
        Tokenizer.load(path)


def test_same_text_same_model_other_text_other_model():
    texts = [document.text for document in read_documents("pydoc")[:10]]
    first, second = Tokenizer.train(texts, vocab_size=400), Tokenizer.train(texts, vocab_size=400)
    assert first.hash == second.hash
    assert first.vocab_size == 400
    assert first.hash != Tokenizer.train(texts[1:], vocab_size=400).hash


def test_too_little_text_is_an_error():
    with pytest.raises(DataError, match="4096 pieces"):
        Tokenizer.train(["a b c"])


def test_long_lines_are_learnt_from():
    """SentencePiece leaves out lines beyond its limit; a word that only a long line holds must be learnt."""
    long_line = "quixotic " * 20_000
    learnt = Tokenizer.train([long_line, "plain words here\n" * 50], vocab_size=300)
    assert len(learnt.encode(" quixotic")) == 1


def test_training_chunks_join_to_the_text():
    text = "line one\n" * 1000 + "x" * 5000 + "\nend"
    chunks = list(training_chunks([text]))
    assert "".join(chunks) == text
    assert max(map(len, chunks)) <= CHUNK
    assert chunks[0].endswith("\n")


def test_mask_character_in_the_training_text_is_no_space():
    learnt = Tokenizer.train(["one\u2581two three " * 100], vocab_size=290)
    assert learnt.decode(learnt.encode("one\u2581two three")) == "one\u2581two three"
    assert learnt.encode("one\u2581two") != learnt.encode("one two")
