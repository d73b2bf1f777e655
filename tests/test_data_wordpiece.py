"""WordPiece: longest pieces first, BERT's cleaning, no special piece by typing, bad files refused."""

import json
import sys

import pytest
from test_tokenizer import HARD_TEXTS
from wordpiece_vocab import VOCAB, write_vocab

from gptjax.data import wordpiece
from gptjax.data.quality import DataError
from gptjax.data.wordpiece import SPECIALS, WordPieceTokenizer
from gptjax.errors import MissingPackage

pytest.importorskip("tokenizers", reason="tokenizers is not installed (gptjax[hub])")


@pytest.fixture(scope="module")
def uncased(tmp_path_factory):
    return WordPieceTokenizer.from_vocab(write_vocab(tmp_path_factory.mktemp("vocab")))


def pieces(tokenizer, text):
    return [VOCAB[id] for id in tokenizer.encode(text)]


def test_the_longest_piece_comes_first(uncased):
    assert pieces(uncased, "unaffable") == ["un", "##aff", "##able"]
    assert pieces(uncased, "Affable, UN!") == ["a", "##f", "##f", "##able", ",", "un", "!"]


def test_cleaning(uncased):
    assert pieces(uncased, "É  e\u0301\t\u00a0E") == ["e", "e", "e"]
    assert pieces(uncased, "a\x00b\ufeffa\x7f\u200db") == ["a", "##b", "##a", "##b"]
    assert pieces(uncased, "a漢a字") == ["a", "漢", "a", "[UNK]"]
    assert pieces(uncased, "😀" + "a" * 101) == ["[UNK]"]
    assert pieces(uncased, "a" * 100) == ["a"] + ["##a"] * 99


def test_case_and_accents_can_stay(tmp_path):
    cased = WordPieceTokenizer.from_vocab(write_vocab(tmp_path), lower_case=False)
    assert pieces(cased, "B é") == ["B", "é"]
    folded = WordPieceTokenizer.from_vocab(write_vocab(tmp_path), lower_case=False, strip_accents=True)
    assert pieces(folded, "B é") == ["B", "e"]


def test_special_pieces(uncased):
    ids = [uncased.pad_id, uncased.unknown_id, uncased.cls_id, uncased.sep_id, uncased.mask_id]
    assert [uncased.piece(id) for id in ids] == list(SPECIALS) and uncased.end_of_text_id == uncased.sep_id
    typed = {id for text in (*HARD_TEXTS, *SPECIALS, "##able ##a") for id in uncased.encode(text)}
    assert typed.isdisjoint(set(ids) - {uncased.unknown_id})
    assert uncased.vocab_size == len(VOCAB) and not uncased.chatml


def test_decoding(uncased):
    ids = uncased.encode("An unaffable ban!")
    assert uncased.decode([uncased.cls_id, *ids, uncased.sep_id]) == "a n unaffable ban !".replace(
        "a n", "an"
    )
    assert b"".join(map(uncased.token_bytes, ids)) == b" an unaffable ban !"
    assert uncased.token_bytes(10**6) == b""


def test_saving(uncased, tmp_path):
    uncased.save(tmp_path / uncased.file_name)
    again = WordPieceTokenizer.load(tmp_path / uncased.file_name)
    assert again.hash == uncased.hash and again.encode("unaffable") == uncased.encode("unaffable")


def changed(tokenizer, **changes):
    return json.dumps(json.loads(tokenizer.content) | changes).encode()


def test_refusals(uncased, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="lone surrogate"):
        uncased.encode("\ud800")
    with pytest.raises(DataError, match="there is no tokenizer"):
        WordPieceTokenizer.load(tmp_path / "absent.json")
    for content in (b"", b"[]", b'{"model": {"type": "BPE"}}', b"[" * 10_000):
        with pytest.raises(DataError, match="not the tokenizer.json of a WordPiece"):
            WordPieceTokenizer(content)
    with pytest.raises(DataError, match="the normalizer"):
        WordPieceTokenizer(changed(uncased, normalizer={"type": "NFC"}))
    model = json.loads(uncased.content)["model"]
    with pytest.raises(DataError, match="inside of words"):
        WordPieceTokenizer(changed(uncased, model=model | {"continuing_subword_prefix": "@"}))
    with pytest.raises(DataError, match="ordinary pieces such as 'ab'"):
        WordPieceTokenizer(changed(uncased, added_tokens=[{"content": "ab", "id": 999}]))
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\na\n", "utf-8")
    with pytest.raises(DataError, match=r"lacks \[CLS\], \[SEP\], \[MASK\]"):
        WordPieceTokenizer.from_vocab(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_text("a\na\n", "utf-8")
    with pytest.raises(DataError, match="1 of its pieces twice"):
        WordPieceTokenizer.from_vocab(tmp_path / "vocab.txt")
    monkeypatch.setattr(wordpiece, "LARGEST_FILE", 3)
    with pytest.raises(DataError, match="more than a tokenizer takes"):
        WordPieceTokenizer.load(tmp_path / "vocab.txt")


def test_without_the_library(uncased, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.setattr("gptjax.errors.find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match="WordPiece"):
        WordPieceTokenizer(uncased.content)
