"""The judge: a lexicon that agrees with plain speech, and the variety of replies by hand."""

import sys

import pytest

from gptjax.errors import MissingPackage
from gptjax.evaluation.judge import distinct_n, lexicon_scores, on_topic


def test_lexicon_agrees_with_plain_sentences():
    good, bad, neither, negated = lexicon_scores(
        [
            "I love this wonderful day!",
            "What a horrible, disgusting mess.",
            "The table has legs.",
            "Not good.",
        ]
    )
    assert good > 0.5 and bad < -0.5 and neither == 0 and negated < 0


def test_distinct_2_by_hand():
    assert distinct_n(["a b A b"]) == 2 / 3  # ab, ba, ab: case is one
    assert distinct_n(["a b", "a b"]) == 1 / 2
    assert distinct_n(["a b", "c d"]) == 1.0  # no pair across texts
    assert distinct_n(["a", ""]) == 0.0
    assert distinct_n(["a b c d"], n=3) == 1.0


def test_on_topic_whatever_the_case():
    assert on_topic("The CPU runs it.", ["cpu"]) and on_topic("the cpu runs it", ["CPU"])
    assert not on_topic("It runs.", ["cpu", "memory"])


def test_on_topic_asks_for_the_whole_word():
    assert not on_topic("Most of those are fantastic.", ["os", "fan"])
    assert on_topic("It is (an) OS.", ["os"]) and on_topic("I like C++.", ["c++"])


def test_a_missing_lexicon_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment", None)
    with pytest.raises(MissingPackage, match=r"lexicon score .* needs vaderSentiment: .*'gptjax\[data\]'"):
        lexicon_scores(["fine"])
