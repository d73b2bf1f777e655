"""WordPiece against transformers: the class of today and the one in plain Python."""

import unicodedata

import pytest
from test_tokenizer import HARD_TEXTS
from wordpiece_vocab import write_vocab

from gptjax.data.corpora import read_documents
from gptjax.data.wordpiece import WordPieceTokenizer

transformers = pytest.importorskip("transformers", reason="transformers is not installed (gptjax[parity])")
legacy = pytest.importorskip("transformers.models.bert.tokenization_bert_legacy")

TEXTS = [
    *(document.text for document in read_documents("ratings", split="heldout")[:300]),
    *(text.replace("\U0010ffff", "") for text in HARD_TEXTS),  # unassigned: Python counts it as a control
    "Café naïve ÅÉ ß İ e\u0301 漢字and漢B 微积分的基本定理，是什么？ 😀👩\u200d🚀",
    "".join(map(chr, range(32))) + "\x7f\x80\x9f",
    "x" * 100 + " " + "y" * 101,
]


@pytest.mark.parametrize("lower_case", [True, False])
def test_ids(tmp_path, lower_case):
    vocab = write_vocab(tmp_path)
    ours = WordPieceTokenizer.from_vocab(vocab, lower_case=lower_case)
    for kind in (transformers.BertTokenizer, legacy.BertTokenizerLegacy):
        theirs = kind(str(vocab), do_lower_case=lower_case)
        # The class in plain Python composes cased text, which Google's code does not.
        for text in TEXTS if lower_case else (unicodedata.normalize("NFC", text) for text in TEXTS):
            expected = theirs(text)["input_ids"]
            assert [ours.cls_id, *ours.encode(text), ours.sep_id] == expected, (kind, text)
