"""SentencePiece's pieces in a `tokenizer.json`: ids by hand, special pieces out of reach, others refused."""

import json

import pytest

from gptjax.data.metaspace import MetaspaceTokenizer, writes_bytes
from gptjax.data.quality import DataError
from gptjax.data.tokenizers import encode_after_special, encode_on
from gptjax.stages.handover import load_tokenizer

pytest.importorskip("tokenizers", reason="tokenizers is not installed (gptjax[hub])")

REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, REPLACE]}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁ab"]
VOCAB = {piece: id for id, piece in enumerate(PIECES)}
SPACE, A, B, SPACE_A, SPACE_AB = range(259, 264)


def content(normalizer=PREPEND, cut=None, **model) -> bytes:
    """A `tokenizer.json`."""
    entry = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    added = [entry | {"id": id, "content": piece} for id, piece in enumerate(PIECES[:3])]
    begin = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    bpe = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "vocab": VOCAB}
    whole = {
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": cut,
        "post_processor": {"type": "TemplateProcessing", "single": begin},
        "model": bpe | {"merges": ["▁ a", "▁a b"]} | model,
    }
    return json.dumps(whole).encode()


@pytest.mark.parametrize(
    ("normalizer", "cut", "prefix", "spaced"),
    [
        (PREPEND, None, True, [SPACE, SPACE_A]),
        (None, METASPACE, True, [SPACE_A]),
        (None, METASPACE | {"prepend_scheme": "never"}, False, [SPACE_A]),
        (REPLACE, None, False, [SPACE_A]),
    ],
)
def test_ids_by_hand(normalizer, cut, prefix, spaced):
    tokenizer = MetaspaceTokenizer(content(normalizer, cut))
    assert tokenizer.prefix == prefix and tokenizer.encode(" a") == spaced
    assert tokenizer.encode("ab a") == ([SPACE_AB, SPACE_A] if prefix else [A, B, SPACE_A])
    assert tokenizer.encode("aé\n")[-3:] == [3 + 0xC3, 3 + 0xA9, 3 + 0x0A]
    for text in ("ab a", "aé 漢\n", "b  a", "<0x41>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.bos_id, tokenizer.end_of_text_id, tokenizer.pad_id) == (1, 2, 2)
    assert tokenizer.vocab_size == len(PIECES) and not tokenizer.chatml


@pytest.mark.parametrize(("normalizer", "cut"), [(PREPEND, None), (None, METASPACE), (REPLACE, None)])
def test_a_text_that_goes_on_has_no_space_before_it(normalizer, cut):
    tokenizer = MetaspaceTokenizer(content(normalizer, cut))
    assert encode_on(tokenizer, "ab a") == [A, B, SPACE_A] and encode_on(tokenizer, " a") == [SPACE_A]
    assert tokenizer.prefix_once == (cut is not None)
    assert encode_after_special(tokenizer, "ab") == ([SPACE_AB] if normalizer == PREPEND else [A, B])


@pytest.mark.parametrize("ignore", [False, True])
def test_no_text_becomes_special(ignore):
    tokenizer = MetaspaceTokenizer(content(REPLACE, ignore_merges=ignore))
    for text in (" 2", "\ue0002", "2", " 1 2"):
        assert not set(tokenizer.encode(text)) & {0, 1, 2}
    tokenizer = MetaspaceTokenizer(content(ignore_merges=ignore))
    for text in ("<s>", "</s> <unk>", "\ue0001", "\ue0000 \ue0002"):
        assert not set(tokenizer.encode(text)) & {0, 1, 2}
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([1, SPACE_A, 2]) == "a"


def test_a_run_keeps_it(tmp_path):
    tokenizer = MetaspaceTokenizer(content())
    tokenizer.save(tmp_path / tokenizer.file_name)
    again = load_tokenizer(tmp_path)
    assert type(again) is MetaspaceTokenizer and again.hash == tokenizer.hash


def test_what_is_like_it_and_what_is_not():
    assert writes_bytes(content()) and not writes_bytes(content(byte_fallback=False))
    assert not any(map(writes_bytes, (b"", b"[]", b'{"model": 3}', b"[" * 100_000)))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"normalizer": None}, "otherwise than SentencePiece"),
        ({"normalizer": {"type": "NFKC"}}, "otherwise than SentencePiece"),
        ({"cut": METASPACE}, "otherwise than SentencePiece"),
        ({"normalizer": None, "cut": METASPACE | {"replacement": "_"}}, "otherwise than SentencePiece"),
        ({"normalizer": None, "cut": "Metaspace"}, "otherwise than SentencePiece"),
        ({"vocab": {k: id for k, id in VOCAB.items() if k != "<0xC3>"}}, "lacks pieces for bytes"),
        ({"vocab": []}, "lacks pieces for bytes"),
        ({"merges": ["▁ <s>"]}, "of or into what no text may become"),
        ({"merges": [["< s", ">"]]}, "of or into what no text may become"),
        ({"type": "Unigram"}, "not the tokenizer.json of a byte pair encoding"),
    ],
)
def test_others_are_refused(tmp_path, changes, sentence):
    (tmp_path / "tokenizer.json").write_bytes(content(**changes))
    with pytest.raises(DataError, match=rf"tokenizer\.json: .*{sentence}"):
        MetaspaceTokenizer.load(tmp_path / "tokenizer.json")
