"""Published SentencePiece models: the library's ids, special pieces out of reach, damaged files refused."""

import io

import pytest
import sentencepiece

from experiments.external_data import external
from gptjax.config import ConfigError
from gptjax.data.code_tokens import add_code_tokens
from gptjax.data.corpora import read_documents
from gptjax.data.quality import DataError
from gptjax.data.sentencepieces import SentencePieceTokenizer, from_lists, parsed, published
from gptjax.data.tokenizers import Tokenizer, encode_on
from gptjax.evaluation.zero_shot import completion_row
from gptjax.generation.engine import _without_space_before

TEXTS = ["", " ", "Hello world", "  two  blanks ", "a\nb\tc", "12345 é 漢字 😀", "</s> <s> <|im_end|>", "▁x"]


@pytest.fixture(scope="module")
def llama_like():
    """A model as LLaMA's: single digits, bytes for unknown characters, a space before the text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for d in read_documents("pydoc")[:40] for line in d.text.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return model.getvalue()


def test_the_ids_are_the_library_s(llama_like):
    theirs = sentencepiece.SentencePieceProcessor(model_proto=llama_like)
    ours = SentencePieceTokenizer(llama_like)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids)
    digits = [ours.piece(id) for id in ours.encode("12345")]
    assert digits == ["▁", "1", "2", "3", "4", "5"] or digits == ["▁1", "2", "3", "4", "5"]
    assert ours.decode(ours.encode("漢字 😀")) == "漢字 😀"


def test_a_text_that_goes_on_has_no_space_before_it(llama_like):
    tokenizer = SentencePieceTokenizer(llama_like)
    before, after = tokenizer.encode("Q: 7?\n"), encode_on(tokenizer, "143")
    assert [tokenizer.piece(id) for id in after] == ["1", "4", "3"]
    assert before + after == tokenizer.encode("Q: 7?\n143")
    assert encode_on(tokenizer, " 143")[-3:] == after
    row = completion_row("Q: 7?\n", "143", tokenizer, 32)
    assert row["targets"][row["loss_mask"] > 0].tolist() == after


def test_tokens_for_code_are_refused(llama_like):
    with pytest.raises(DataError, match="this is a SentencePieceTokenizer: leave out code_tokens"):
        add_code_tokens(SentencePieceTokenizer(llama_like))


def test_what_is_streamed_is_what_is_decoded():
    for pieces in ([" ", "value"], [" value", " T"], ["value"], [" "], []):
        assert "".join(_without_space_before(iter(pieces))) == "".join(pieces).removeprefix(" ")


def test_no_text_becomes_special(llama_like):
    tokenizer = SentencePieceTokenizer(llama_like)
    assert tokenizer.specials == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert tokenizer.end_of_text_id == tokenizer.pad_id == 2 and not tokenizer.chatml
    assert not set(tokenizer.encode("<unk><s></s>")) & {0, 1, 2}
    with pytest.raises(DataError, match="can't chat"):
        _ = tokenizer.im_end_id


def test_added_pieces_are_special_and_follow(llama_like):
    added = {"<|im_start|>": 601, "<pad>": 600, "<|im_end|>": 602}
    tokenizer = published(llama_like, added)
    assert tokenizer.vocab_size == 603 and tokenizer.chatml and tokenizer.pad_id == 600
    assert (tokenizer.im_start_id, tokenizer.im_end_id) == (601, 602)
    for text in TEXTS:
        assert tokenizer.encode(text) == SentencePieceTokenizer(llama_like).encode(text)
    with pytest.raises(DataError, match="has the id 700 where 600 follows"):
        published(llama_like, {"<pad>": 700})
    with pytest.raises(DataError, match="are no numbers"):
        published(llama_like, {"<pad>": "600"})


def test_a_piece_stands_before_a_text_unless_the_model_is_told_otherwise(llama_like):
    begun = published(llama_like)
    assert begun.bos_id == begun.specials["<s>"] == 1 not in begun.encode("<s> Hello")
    without = published(llama_like, begins=False)
    assert without.bos_id is None and SentencePieceTokenizer(without.model).bos_id is None
    assert without.encode("Hello") == begun.encode("Hello") and without.specials == begun.specials


def test_our_own_model_stays_ours(tokenizer):
    assert isinstance(published(tokenizer.model), Tokenizer) and tokenizer.bos_id is None
    assert published(tokenizer.model, begins=False).hash == tokenizer.hash


def test_the_lists_of_gguf_are_the_same_tokenizer(llama_like):
    proto = parsed(llama_like)
    pieces, scores, kinds = ([getattr(p, key) for p in proto.pieces] for key in ("piece", "score", "type"))
    unused = (["[PAD600]"], [0.0], [5])
    lists = [all + more for all, more in zip((pieces, scores, kinds), unused, strict=True)]
    tokenizer = from_lists(*lists, prefix=True, end_of_text=2)
    assert tokenizer.vocab_size == 600 and tokenizer.end_of_text_id == 2 and tokenizer.bos_id is None
    assert from_lists(*lists, prefix=True, end_of_text=2, begin=1).bos_id == 1
    with pytest.raises(DataError, match="begins a text with the id 5, which is no control piece"):
        from_lists(*lists, prefix=True, end_of_text=2, begin=5)
    for text in TEXTS:
        assert tokenizer.encode(text) == SentencePieceTokenizer(llama_like).encode(text)
    without = from_lists(*lists, prefix=False, end_of_text=2)
    assert not without.piece(without.encode("a")[0]).startswith("▁")
    for bad in ((pieces[1:], scores, kinds), (pieces, scores, [1] * 600), (pieces, scores, [77] * 600)):
        with pytest.raises(DataError):
            from_lists(*bad, prefix=True, end_of_text=2)
    with pytest.raises(DataError, match="end of a text"):
        from_lists(*lists, prefix=True, end_of_text=9999)


def test_a_real_model():
    """Of Chinese-LLaMA-Alpaca: 20,000 pieces, a unigram model with NFKC."""
    try:
        path = external("tokenizers/chinese_llama_sp_20k.model")
    except ConfigError as error:
        pytest.skip(str(error))
    tokenizer = SentencePieceTokenizer.load(path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=path)
    assert tokenizer.vocab_size == 20_000 and tokenizer.end_of_text_id == 2 and tokenizer.prefix
    assert tokenizer.encode("你好 world 123") == [11822, 3956, 1228, 11174, 4, 10214]
    for text in [*TEXTS, "微积分的基本定理，是什么？", "ﬁ １２"]:
        ids = tokenizer.encode(text)
        assert ids == theirs.encode(text)
    assert tokenizer.decode(tokenizer.encode("床前明月光")) == "床前明月光"


def test_damaged_models_are_refused(llama_like, tmp_path):
    ends_nowhere = parsed(llama_like)
    for piece in ends_nowhere.pieces:
        if piece.piece == "</s>":
            piece.type = 1
    odd_byte = parsed(llama_like)
    next(p for p in odd_byte.pieces if p.type == 6).piece = "<0xZZ>"
    bad = [b"", b"abc", llama_like[:1000], llama_like[:-3], b"\x0a\x03\x0a\x01a"]
    bad += [ends_nowhere.SerializeToString(), odd_byte.SerializeToString()]
    for content in bad:
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(DataError, match=r"tokenizer\.model"):
            SentencePieceTokenizer.load(tmp_path / "tokenizer.model")
