"""GPT-1's tokenizer: merges inside words by hand, special pieces out of reach, damaged files refused."""

import json

import pytest

from gptjax.data.quality import DataError
from gptjax.data.word_bpe import STEPS, WordBpeTokenizer

pytest.importorskip("tokenizers", reason="tokenizers is not installed (gptjax[hub])")

PIECES = ["<unk>", "a", "b", "c", "a</w>", "b</w>", "c</w>", "<</w>", "u", "n", "k</w>", "></w>"]
PIECES += ["ab", "ab</w>", "abc</w>"]
MERGES = ["a b</w>", "a b", "ab c</w>"]


def description(**model):
    vocab = {piece: id for id, piece in enumerate(PIECES)}
    body = {"type": "BPE", "unk_token": "<unk>", "end_of_word_suffix": "</w>", "vocab": vocab}
    return {**STEPS, "model": body | {"merges": MERGES} | model}


def made(**changes):
    return WordBpeTokenizer(json.dumps(description() | changes).encode())


def spelt(tokenizer, text):
    return [PIECES[id] for id in tokenizer.encode(text)]


def test_pairs_are_merged_inside_words_in_the_order_of_the_merges():
    tokenizer = made()
    assert spelt(tokenizer, "ab abc  AB") == ["ab</w>", "abc</w>", "ab</w>"]
    # "a b" ends the word before "ab c" can begin one.
    assert spelt(tokenizer, "cab") == ["c", "ab</w>"]
    assert tokenizer.decode(tokenizer.encode("AB cab")) == "ab cab"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode("abc a"))) == b"abc a "


def test_a_character_without_a_piece_is_unknown_and_no_text_is_special():
    tokenizer = made()
    assert spelt(tokenizer, "a x")[0] == "a</w>" and tokenizer.encode("x") == [tokenizer.unknown_id]
    assert spelt(tokenizer, "<unk>") == ["<</w>", "u", "n", "k</w>", "></w>"]
    assert tokenizer.pad_id == 0 and tokenizer.piece(0) == "<unk>" and not tokenizer.chatml
    with pytest.raises(DataError, match="no piece for the end of a text"):
        _ = tokenizer.end_of_text_id


def test_vocab_and_merges_are_the_same_tokenizer(tmp_path):
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    vocab = {piece: id for id, piece in enumerate(PIECES)}
    tokenizer = WordBpeTokenizer.from_vocab_and_merges(vocab, tmp_path / "merges.txt")
    assert tokenizer.encode("cab <abc>") == made().encode("cab <abc>")
    tokenizer.save(tmp_path / "word_bpe.json")
    assert WordBpeTokenizer.load(tmp_path / "word_bpe.json").hash == tokenizer.hash


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"normalizer": None}, "the normalizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "not GPT-1's BertPreTokenizer"),
        ({"model": description(unk_token=None)["model"]}, "unknown characters"),
        ({"model": description(end_of_word_suffix="_")["model"]}, "otherwise than with"),
        ({"model": description(merges=["a <unk>"])["model"]}, "no text may become"),
        ({"model": description(merges=["a q"])["model"]}, "no text may become"),
        ({"model": description(vocab={"<unk>": 10**9})["model"]}, "not numbers from 0"),
        ({"model": {"type": "Unigram"}}, "byte pair encoding"),
    ],
)
def test_another_tokenizer_is_refused(change, sentence):
    with pytest.raises(DataError, match=sentence):
        made(**change)
