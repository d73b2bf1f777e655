"""Judging samples by something no stage was trained on: a sentiment lexicon, and how varied the text is."""

import json
import re
from collections.abc import Sequence
from importlib import resources

from gptjax.errors import require


def lexicon_scores(texts: Sequence[str]) -> list[float]:
    """The compound score of the VADER lexicon in [-1, 1], one per text (Hutto and Gilbert 2014).

    The lexicon and its rules come from PyPI `vaderSentiment`; no stage reads them.

    Raises MissingPackage when it is not installed.
    """
    require("vaderSentiment")
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return [analyzer.polarity_scores(text)["compound"] for text in texts]


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Different word n-grams of all texts over all their n-grams (Li et al. 2016); 0 without any."""
    grams = []
    for text in texts:
        words = text.lower().split()
        grams += zip(*(words[i:] for i in range(n)), strict=False)
    return len(set(grams)) / len(grams) if grams else 0.0


def chat_questions() -> list[dict]:
    """The bundled questions that reword questions of the training dialogues: "question", "keywords", ..."""
    file = resources.files("gptjax.assets") / "chat_questions.json"
    return json.loads(file.read_text(encoding="utf-8"))


def on_topic(reply: str, keywords: Sequence[str]) -> bool:
    """Whether the reply contains one of the keywords as a whole word, whatever its case."""
    either = "|".join(map(re.escape, keywords))
    return re.search(rf"(?<!\w)(?:{either})(?!\w)", reply, re.IGNORECASE) is not None
