"""Near-duplicate texts, found exactly: word 3-shingles that overlap by half, or words by four fifths.

The candidates come from prefix filtering (Bayardo, Ma and Srikant, "Scaling Up All Pairs Similarity Search",
WWW 2007, section 4): with the shingles of a text ordered from rare to common, two sets of Jaccard similarity
t or more share one of their first n - ceil(t n) + 1. Nothing is drawn at random, so nothing is missed and
the clusters depend on the texts alone.
"""

import html
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain

SHINGLE = 3
THRESHOLD = 0.5
WORD_THRESHOLD = 0.8


def words(text: str) -> list[str]:
    """The lower-case words of `text`, without punctuation and HTML entities."""
    return re.findall(r"\w+", html.unescape(text).lower())


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """The 3-word sequences of `text`; of a text of fewer than five words, its set of words as one element."""
    w = words(text)
    if len(w) < SHINGLE + 2:
        return frozenset([tuple(sorted(set(w)))])
    return frozenset(zip(*(w[offset:] for offset in range(SHINGLE)), strict=False))


def word_set(text: str) -> frozenset[str]:
    """The set of words of `text`; empty, which is like nothing, for a text of fewer than five words."""
    w = words(text)
    return frozenset(w) if len(w) >= SHINGLE + 2 else frozenset()


def jaccard(a: frozenset, b: frozenset) -> float:
    """Size of the intersection over size of the union."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def duplicate_pairs(sets: Sequence[frozenset], threshold: float = THRESHOLD) -> Iterable[tuple[int, int]]:
    """The pairs (i, j), i < j, with Jaccard similarity `threshold` or more."""
    frequency = Counter(element for elements in sets for element in elements)
    # Equally common elements may come in any order: every order finds every pair.
    rank = {element: place for place, element in enumerate(sorted(frequency, key=frequency.__getitem__))}
    holders: dict[object, list[int]] = defaultdict(list)
    for j, elements in enumerate(sets):
        rare_first = sorted(elements, key=rank.__getitem__)
        # Less a hair: 0.55 * 100 is a little above 55 in floating point.
        shared = math.ceil(threshold * len(elements) - 1e-9)
        prefix = rare_first[: len(elements) - shared + 1]
        candidates = {i for element in prefix for i in holders[element] if len(sets[i]) >= shared}
        yield from ((i, j) for i in sorted(candidates) if jaccard(sets[i], elements) >= threshold)
        for element in prefix:
            holders[element].append(j)


def clusters(texts: Sequence[str], names: Sequence[str]) -> list[str]:
    """The cluster of each text, called by the least of its members' names; alone, a text has its own name."""
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    in_order = duplicate_pairs([shingles(text) for text in texts])
    same_words = duplicate_pairs([word_set(text) for text in texts], WORD_THRESHOLD)
    for i, j in chain(in_order, same_words):
        parent[root(i)] = root(j)
    least: dict[int, str] = {}
    for i, name in enumerate(names):
        least[root(i)] = min(name, least.get(root(i), name))
    return [least[root(i)] for i in range(len(texts))]
