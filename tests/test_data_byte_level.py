"""Byte-level BPE: nothing is lost, no text poses as a special piece, damaged files are refused."""

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer import HARD_TEXTS

from gptjax.data.byte_level import ByteLevelTokenizer, byte_characters, from_vocab_and_merges
from gptjax.data.corpora import read_documents
from gptjax.data.quality import DataError
from gptjax.data.tokenizer_json import CUTS

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed (gptjax[hub])")

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CODE = "def f(x: int) -> str:\n\tif x != 0x1F:\n        return f'{x:>10}'  # 1234567\n"
CHINESE = "微积分的基本定理，是什么？「它」很重要……"
CONTROL = "".join(map(chr, range(32))) + "\x7f\x80\x9f"
TEXTS = [*HARD_TEXTS, CODE, CHINESE, CONTROL]


def pieces(*more: str) -> list[str]:
    """The smallest vocabulary: specials and bytes, and some more."""
    return [*SPECIALS, *byte_characters(), *more]


def made(*more: str, merges=(), cut="gpt-2", kinds=None) -> ByteLevelTokenizer:
    every = pieces(*more)
    kinds = [3] * 3 + [1] * (len(every) - 3) if kinds is None else kinds
    return ByteLevelTokenizer.from_pieces(every, kinds, list(merges), cut)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("cut", CUTS)
def test_round_trip_of_hard_texts(text, cut):
    small = made("ab", "12", merges=["a b", "1 2"], cut=cut)
    ids = small.encode(text)
    assert small.decode(ids) == text
    assert b"".join(small.token_bytes(id) for id in ids) == text.encode("utf-8")
    assert {0, 1, 2}.isdisjoint(ids)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\x00<|>"), max_size=60))
def test_round_trip_of_any_text(byte_level, text):
    assert byte_level.decode(byte_level.encode(text)) == text


def test_round_trip_of_real_text(byte_level):
    for document in read_documents("pydoc", split="heldout")[:50]:
        assert byte_level.decode(byte_level.encode(document.text)) == document.text


def test_the_256_characters_are_those_of_the_library():
    assert set(byte_characters()) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_characters().values()) == list(range(256))
    assert byte_characters()["A"] == 65 and byte_characters()["Ġ"] == 32 and byte_characters()["Ċ"] == 10


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_library(byte_level, text):
    library = tokenizers.Tokenizer.from_str(byte_level.content.decode())
    library.encode_special_tokens = True
    assert byte_level.encode(text) == library.encode(text, add_special_tokens=False).ids


def test_digits_are_cut_where_the_rule_says_so():
    more, merges = ("12", "123"), ["1 2", "12 3"]
    assert len(made(*more, merges=merges, cut="gpt-2").encode("123")) == 1
    assert len(made(*more, merges=merges, cut="smollm").encode("123")) == 3
    assert len(made(*more, merges=merges, cut="llama-bpe").encode("1234")) == 2


def test_a_special_piece_cannot_be_typed_whatever_the_file_says_of_it():
    """Not as an added piece that is not special, not by merges, and not by a whole word found in the list."""
    as_user_defined = made(kinds=[4] * 3 + [1] * 256)
    description = json.loads(made().content)
    description["model"]["ignore_merges"] = True
    description["pre_tokenizer"] = json.loads(made(cut="llama-bpe").content)["pre_tokenizer"][
        "pretokenizers"
    ][1]
    whole_words = ByteLevelTokenizer(json.dumps(description).encode())
    description["added_tokens"] = []
    not_added = ByteLevelTokenizer(json.dumps(description).encode())
    for tokenizer in (as_user_defined, whole_words, not_added):
        for special in SPECIALS:
            for text in (special, f"x{special}", f"{special}\n"):
                assert {0, 1, 2}.isdisjoint(tokenizer.encode(text))
                assert tokenizer.decode(tokenizer.encode(text)) == text


def test_merges_that_make_a_special_piece_are_refused():
    steps, merges, text = [], [], "<|im_end|>"
    for end in range(2, len(text)):
        steps.append(text[:end])
        merges.append(f"{text[: end - 1]} {text[end - 1]}")
    with pytest.raises(DataError, match="into what no text may become"):
        made(*steps, merges=[*merges, "<|im_end| >"])


def test_user_defined_pieces_are_taken_from_the_text():
    every = pieces("    ", "[X]")
    tokenizer = ByteLevelTokenizer.from_pieces(every, [3] * 3 + [1] * 256 + [4, 4], [], "gpt-2")
    assert tokenizer.encode("[X]    ") == [260, 259]
    assert tokenizer.decode([260, 259]) == "[X]    " and tokenizer.token_bytes(259) == b"    "


def test_special_ids_give_no_text_and_neither_do_ids_beyond_the_vocabulary(byte_level):
    hello = byte_level.encode("hello")
    assert byte_level.decode([byte_level.im_start_id, *hello, byte_level.im_end_id, 0, 5000]) == "hello"
    assert byte_level.token_bytes(byte_level.im_end_id) == b""


def test_a_character_without_pieces_is_refused_with_its_place():
    missing = next(character for character, byte in byte_characters().items() if byte == 4)
    every = [piece for piece in pieces() if piece != missing]
    tokenizer = ByteLevelTokenizer.from_pieces(every, None, [], "gpt-2")
    assert tokenizer.decode(tokenizer.encode("é\x03")) == "é\x03"
    with pytest.raises(DataError, match=r"no piece for '\\x04' at character 2"):
        tokenizer.encode("é漢\x04")


def test_lone_surrogates_are_refused(byte_level):
    with pytest.raises(DataError, match="lone surrogate at character 3"):
        byte_level.encode("abc\ud800")


def test_a_piece_that_the_file_puts_before_a_text(byte_level):
    assert byte_level.bos_id is None
    every = ["<|end_of_text|>", *byte_characters(), "<|begin_of_text|>"]
    kinds, begin = [3, *[1] * 256, 3], len(every) - 1
    begun = ByteLevelTokenizer.from_pieces(every, kinds, [], "llama-bpe", begin)
    assert begun.bos_id == begin not in begun.encode("<|begin_of_text|>")
    library = tokenizers.Tokenizer.from_str(begun.content.decode())
    assert library.encode("ab").ids == [begin, *begun.encode("ab")]
    description = json.loads(begun.content)
    step = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    both = {"type": "Sequence", "processors": [step, description["post_processor"]]}
    assert ByteLevelTokenizer(json.dumps(description | {"post_processor": both}).encode()).bos_id == begin
    odd = [step, "x", {"type": "Sequence", "processors": 3}, {"type": "TemplateProcessing", "single": []}]
    odd += [{"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": [1]}}]}]
    odd += [{"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}]}]
    for processor in odd:
        plain = ByteLevelTokenizer(json.dumps(description | {"post_processor": processor}).encode())
        assert plain.bos_id is None
    for bad in (1, 1000, -1):
        with pytest.raises(DataError, match=f"begins a text with the id {bad}, which is no control piece"):
            ByteLevelTokenizer.from_pieces(every, kinds, [], "llama-bpe", bad)


def test_a_tokenizer_without_chatml_cannot_frame_messages():
    every = ["<|endoftext|>", *byte_characters()]
    tokenizer = ByteLevelTokenizer.from_pieces(every, None, [], "gpt-2")
    assert tokenizer.pad_id == tokenizer.end_of_text_id == 0 and not tokenizer.chatml
    with pytest.raises(DataError, match=r"no <\|im_start\|>, so the model can't chat"):
        _ = tokenizer.im_start_id


def test_save_and_load_keep_everything(byte_level, tmp_path):
    byte_level.save(tmp_path / "tokenizer.json")
    loaded = ByteLevelTokenizer.load(tmp_path / "tokenizer.json")
    digest = hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()
    assert loaded.hash == byte_level.hash == digest
    assert loaded.encode(CODE) == byte_level.encode(CODE)


def test_gpt2s_own_files(tmp_path):
    every = pieces("ab")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n", encoding="utf-8")
    vocab = {piece: id for id, piece in enumerate(every)}
    tokenizer = from_vocab_and_merges(vocab, tmp_path / "merges.txt")
    assert tokenizer.encode("ab<|endoftext|>")[0] == 259 and 0 not in tokenizer.encode("<|endoftext|>")
    with pytest.raises(DataError, match="are not those from 0"):
        from_vocab_and_merges(vocab | {"more": 7000}, tmp_path / "merges.txt")


def changed(**changes) -> bytes:
    """A sound file with parts replaced."""
    return json.dumps(json.loads(made().content) | changes).encode()


def with_model(**changes) -> bytes:
    return changed(model=json.loads(made().content)["model"] | changes)


HOSTILE = {
    "empty": (b"", "is not a tokenizer.json"),
    "no JSON": (b"\xff\xfe", "is not a tokenizer.json"),
    "deep": (b"[" * 100_000, "is not a tokenizer.json"),
    "no object": (b"[]", "byte pair encoding"),
    "another model": (with_model(type="Unigram"), "byte pair encoding"),
    "no bytes": (changed(pre_tokenizer={"type": "Metaspace"}), "does not work on bytes"),
    "no pre-tokenizer": (changed(pre_tokenizer=None), "does not work on bytes"),
    "no vocabulary": (with_model(vocab={}), "no list of pieces"),
    "huge id": (with_model(vocab={"a": 2**40}), "not numbers from 0"),
    "negative id": (with_model(vocab={"a": -1, "b": 0}), "not numbers from 0"),
    "text for an id": (with_model(vocab={"a": "0"}), "not numbers from 0"),
    "one id twice": (changed(added_tokens=[{"id": 5, "content": "new"}]), "have one id"),
    "two ids": (changed(added_tokens=[{"id": 5, "content": "<|im_end|>"}]), "has the id 5 and 2"),
    "no content": (changed(added_tokens=[{"id": 5}]), "has no content"),
    "no end": (changed(added_tokens=[], model={"vocab": {"a": 0}, "merges": []}), "end of a text"),
    "wrong merges": (with_model(merges=[["no", "such"]]), "no text may become"),
    "merges into nothing": (with_model(merges=[["a", "b"]]), "no text may become"),
    "merges of numbers": (with_model(merges=[[1, 2]]), "not two pieces"),
    "no merges": (with_model(merges=None), "no list of merges"),
    "marked words": (with_model(end_of_word_suffix="</w>"), "marks the inside"),
    "odd normalizer": (changed(normalizer={"type": "Martian"}), "cannot be used"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_damaged_files_are_refused_in_a_sentence(tmp_path, name):
    content, sentence = HOSTILE[name]
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=sentence) as caught:
        ByteLevelTokenizer.load(tmp_path / "tokenizer.json")
    assert "tokenizer.json" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cut": "martian"}, "by the rule 'martian': known are gpt-2, smollm"),
        ({"kinds": [1]}, "259 pieces, but the kinds of 1"),
        ({"merges": ["one"]}, "not two pieces"),
        ({"merges": ["x nosuch"]}, "no text may become"),
    ],
)
def test_lists_that_do_not_fit_are_refused(change, sentence):
    with pytest.raises(DataError, match=sentence):
        made(**change)
    with pytest.raises(DataError, match="1 of its pieces twice"):
        made("a")
