"""The VADER study as instruction data: short texts, each with the single votes of 15 to 99 people.

Source: Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media
Text", ICWSM 2014. The shape (K replies to one instruction, ranked by people) is that of InstructGPT
(Ouyang et al. 2022, section 3.5).
"""

import json
import lzma
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from gptjax.data.duplicates import clusters
from gptjax.data.files import bucket
from gptjax.data.preferences import RankedReplies
from gptjax.data.quality import DataError

INSTRUCTIONS = {
    "tweets": ("Write a tweet", "Post a tweet", "Write a short message for Twitter"),
    "movie_reviews": ("Write a movie review", "Write a short film review", "Write a line of a movie review"),
    "product_reviews": (
        "Write a product review",
        "Write a short product review",
        "Write a line of a product review",
    ),
    "editorials": (
        "Write a sentence of a newspaper editorial",
        "Write a sentence of an opinion piece",
        "Write a line for the opinion page",
    ),
}
MAX_FIRST_WORDS = 4


@dataclass(frozen=True)
class RatedText:
    """A text with every vote on it.

    Attributes:
        id: unique over all sources, such as "tweets/12".
        source: a key of INSTRUCTIONS.
        text: as the raters saw it, HTML entities included.
        votes: -4 (extremely negative) to 4 (extremely positive), one a rater.
    """

    id: str
    source: str
    text: str
    votes: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Mean of the votes."""
        return sum(self.votes) / len(self.votes)


@cache
def load_ratings() -> tuple[RatedText, ...]:
    """All 23,703 texts, by source."""
    packed = (resources.files("gptjax.assets") / "ratings.jsonl.xz").read_bytes()
    rows = [json.loads(line) for line in lzma.decompress(packed).decode("utf-8").split("\n") if line]
    return tuple(
        RatedText(f"{row['source']}/{row['id']}", row["source"], row["text"], tuple(row["votes"]))
        for row in rows
    )


def split_ratings(texts: Sequence[RatedText]) -> tuple[list[RatedText], list[RatedText]]:
    """Training and held-out texts, 80 to 20; near-duplicates are on the same side.

    The side is a hash of the least id among a text's near-duplicates.
    """
    train, heldout = sides(tuple(texts))
    return list(train), list(heldout)


@cache
def sides(texts: tuple[RatedText, ...]) -> tuple[list[RatedText], list[RatedText]]:
    """What `split_ratings` returns, worked out once: the search for near-duplicates takes two seconds."""
    names = clusters([text.text for text in texts], [text.id for text in texts])
    train, heldout = [], []
    for text, name in zip(texts, names, strict=True):
        (heldout if bucket(name, 5) == 0 else train).append(text)
    return train, heldout


def instructions(source: str) -> list[str]:
    """The bare instructions that ask for a text of `source`."""
    return [f"{phrase}." for phrase in INSTRUCTIONS[source]]


def first_words_of(text: str, count: int) -> str:
    """The first `count` words of `text` as they stand, fewer where the text would not go on after them."""
    words = list(re.finditer(r"\S+", text))
    count = min(count, len(words) - 1)
    return text[words[0].start() : words[count - 1].end()] if count > 0 else ""


def instruction_for(text: RatedText, first_words: int = 0, phrasing: int = 0) -> str:
    """The instruction to which `text` is a reply, with its first words given unless `first_words` is 0."""
    phrase = INSTRUCTIONS[text.source][phrasing]
    beginning = first_words_of(text.text, first_words)
    return f'{phrase} that begins with "{beginning}".' if beginning else f"{phrase}."


def demonstrations(texts: Sequence[RatedText], seed: int) -> list[list[dict[str, str]]]:
    """Each text as the reply to its instruction: half bare, half with its first 1 to 4 words given."""
    rng = np.random.default_rng(seed)
    dialogues = []
    for text in texts:
        first_words = int(rng.integers(1, MAX_FIRST_WORDS + 1)) if rng.random() < 0.5 else 0
        phrasing = int(rng.integers(len(INSTRUCTIONS[text.source])))
        dialogues.append(
            [
                {"role": "user", "content": instruction_for(text, first_words, phrasing)},
                {"role": "assistant", "content": text.text},
            ]
        )
    return dialogues


def ranked_replies(
    texts: Sequence[RatedText],
    *,
    groups: int,
    seed: int,
    k_min: int = 4,
    k_max: int = 9,
    source: str | None = None,
) -> list[RankedReplies]:
    """`groups` instructions with K in k_min..k_max replies each, scored by the mean of their votes.

    All replies to an instruction come from its source and no two of them have the same mean, so every pair
    has an order. About half the instructions give the first words, where enough texts begin alike. Every
    pass over the texts uses each once, save the few that are left over, and shuffles anew.

    Raises DataError when the texts are too few for one group.
    """
    pool = [text for text in texts if source in (None, text.source)]
    rng = np.random.default_rng(seed)
    ranked: list[RankedReplies] = []
    while len(ranked) < groups:
        one_pass = [
            group
            for first_words, replies in texts_that_begin_alike(pool, k_min, rng)
            for group in groups_of_replies(replies, first_words, k_min, k_max, rng)
        ]
        if not one_pass:
            raise DataError(f"{len(pool)} rated texts are too few to rank {k_min} replies to one instruction")
        ranked += [one_pass[index] for index in rng.permutation(len(one_pass))]
    return ranked[:groups]


def texts_that_begin_alike(
    texts: Sequence[RatedText], k_min: int, rng: np.random.Generator
) -> list[tuple[int, list[RatedText]]]:
    """Parts the shuffled texts into sets of one source that share their first 3, 2, 1 or 0 words.

    Three quarters of the texts look for `k_min` or more that begin like them, with 3, 2 or 1 words at
    first, then with fewer; those that find none join the rest of their source.
    """
    at_most = rng.integers(0, 4, len(texts))
    order = rng.permutation(len(texts))
    found: list[tuple[int, list[RatedText]]] = []
    waiting: list[RatedText] = []
    for first_words in (3, 2, 1, 0):
        waiting += [texts[index] for index in order if at_most[index] == first_words]
        alike: dict[tuple[str, str], list[RatedText]] = defaultdict(list)
        for text in waiting:
            alike[text.source, first_words_of(text.text, first_words)].append(text)
        waiting = []
        for (_, beginning), members in alike.items():
            if first_words == 0 or (beginning and len(members) >= k_min):
                found.append((first_words, members))
            else:
                waiting += members
    return found


def groups_of_replies(
    texts: list[RatedText], first_words: int, k_min: int, k_max: int, rng: np.random.Generator
) -> Iterator[RankedReplies]:
    """Deals `texts` into groups of a random size without equal means or texts; a small rest is left out."""
    while len(texts) >= k_min:
        size = int(rng.integers(k_min, k_max + 1))
        group: dict[float, RatedText] = {}
        rest = []
        for place, text in enumerate(texts):
            if len(group) == size:
                rest += texts[place:]
                break
            known = text.text in [other.text for other in group.values()]
            if text.mean not in group and not known:
                group[text.mean] = text
            else:
                rest.append(text)
        if len(group) < k_min:
            return
        phrasing = int(rng.integers(len(INSTRUCTIONS[texts[0].source])))
        instruction = instruction_for(texts[0], first_words, phrasing)
        prompt = [{"role": "user", "content": instruction}]
        completions = [text.text for text in group.values()]
        votes = tuple(len(text.votes) for text in group.values())
        yield RankedReplies(prompt, completions, list(group), source=texts[0].source, votes=votes)
        texts = rest
