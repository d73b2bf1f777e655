"""BERT's rows: layout, the rule of hiding and its shares, pairs that follow and pairs that do not."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from gptjax.data.masking import (
    NEXT,
    RANDOM,
    MaskingConfig,
    hide,
    masked_rows,
    sentence_pairs,
    sentences,
    truncated,
)
from gptjax.data.quality import DataError

V, MASK = 1000, 4
TOKENIZER = SimpleNamespace(pad_id=0, cls_id=2, sep_id=3, mask_id=MASK, vocab_size=V)
CONFIG = MaskingConfig()


def documents(count=40, seed=0):
    """Documents of 5 to 12 sentences of 3 to 9 tokens; every token names its document, and rises in it."""
    rng, made = np.random.default_rng(seed), []
    for index in range(count):
        lengths = rng.integers(3, 10, rng.integers(5, 13))
        ids = 10_000 * (index + 1) + np.arange(lengths.sum())
        made.append([list(map(int, part)) for part in np.split(ids, np.cumsum(lengths)[:-1])])
    return made


def pairs_of(made, most=40, short_share=0.1, seed=0):
    rng = np.random.default_rng(seed)
    return [(i, pair) for i in range(len(made)) for pair in sentence_pairs(made, i, most, short_share, rng)]


def test_sentences():
    assert sentences("One. Two? Mr.X!\n three\nfour\n\nFive  ") == [
        "One.",
        "Two?",
        "Mr.X!",
        "three four",
        "Five",
    ]
    assert sentences("是。不是！ 吗？") == ["是。", "不是！", "吗？"]
    assert sentences(" \n ") == []


def test_segments_follow_each_other_or_are_of_another_document():
    labels = Counter()
    for index, (first, second, label) in pairs_of(documents()):
        assert 1 <= len(first) and 1 <= len(second) and len(first) + len(second) <= 40
        homes = {id // 10_000 - 1 for id in first}, {id // 10_000 - 1 for id in second}
        assert homes[0] == {index} and len(homes[1]) == 1
        assert all(b - a == 1 for part in (first, second) for a, b in zip(part, part[1:], strict=False))
        # Only a cut at the seam, which happens at both ends of the longer segment, can part the two.
        assert homes[1] == {index} and second[0] > first[-1] if label == NEXT else homes[1] != {index}
        labels[label] += 1
    # Two of three pairs come of a drawn coin; the last sentence of a document alone has a random one always.
    assert 0.4 < labels[NEXT] / labels.total() < 0.55


def test_unused_sentences_are_used_again():
    """Every sentence of a document is in a first segment or follows one, when nothing has to be cut."""
    made = documents()
    seen = {i: set() for i in range(len(made))}
    for index, (first, second, label) in pairs_of(made, most=1000, short_share=0.0):
        seen[index] |= set(first) | (set(second) if label == NEXT else set())
    assert all(seen[i] == {id for s in document for id in s} for i, document in enumerate(made))


def test_a_single_sentence_has_a_random_one():
    made = [[[10, 11]], [[20, 21]]]
    assert [pair for _, pair in pairs_of(made)] == [
        ([10, 11], [20, 21], RANDOM),
        ([20, 21], [10, 11], RANDOM),
    ]


def test_short_rows():
    sizes = [len(p.first) + len(p.second) for _, p in pairs_of(documents(300), most=40, short_share=1.0)]
    full = [len(p.first) + len(p.second) for _, p in pairs_of(documents(300), most=40, short_share=0.0)]
    assert np.mean(full) > 30 > 25 > np.mean(sizes)


def test_cutting_takes_from_the_longer_at_both_ends():
    rng, fronts = np.random.default_rng(0), []
    for _ in range(500):
        first, second = truncated(list(range(20)), [1, 2], 10, rng)
        assert len(first) == 8 and second == [1, 2] and first == list(range(first[0], first[0] + 8))
        fronts.append(first[0])
    assert np.mean(fronts) == pytest.approx(6, abs=0.3) and np.var(fronts) == pytest.approx(3, abs=0.6)
    first, second = truncated([1] * 9, [2] * 9, 11, rng)
    assert (len(first), len(second)) == (6, 5) or (len(first), len(second)) == (5, 6)


@pytest.mark.parametrize(
    ("length", "most", "count"), [(3, 20, 1), (10, 20, 2), (17, 20, 3), (128, 20, 19), (200, 20, 20)]
)
def test_how_many_are_hidden(length, most, count):
    tokens = np.arange(100, 100 + length, dtype=np.int32)
    config = MaskingConfig(max_predictions=most)
    hidden, places = hide(tokens, np.arange(1, length - 1), MASK, V, config, np.random.default_rng(0))
    assert len(places) == count and list(places) == sorted(set(places)) and {0, length - 1}.isdisjoint(places)
    others = np.setdiff1d(np.arange(length), places)
    assert (hidden[others] == tokens[others]).all()


def test_shares_of_masks_random_tokens_and_kept_ones():
    tokens, rng, counts, drawn = np.full(100, 500, np.int32), np.random.default_rng(0), Counter(), []
    for _ in range(2000):
        hidden, places = hide(tokens, np.arange(1, 99), MASK, V, CONFIG, rng)
        drawn += list(hidden[places])
    counts.update("mask" if id == MASK else "kept" if id == 500 else "random" for id in drawn)
    total = counts.total()
    assert total == 2000 * 15
    # A random id of 1,000 is the mask or the token itself once in 500 times. Three standard errors are 0.007.
    assert counts["mask"] / total == pytest.approx(0.8001, abs=0.007)
    assert counts["kept"] / total == pytest.approx(0.1001, abs=0.006)
    others = np.array([id for id in drawn if id not in (MASK, 500)])
    assert others.min() < 10 and others.max() > 990 and np.mean(others) == pytest.approx(499.5, abs=17)


def test_places_are_even():
    rng, seen = np.random.default_rng(0), Counter()
    for _ in range(3000):
        seen.update(hide(np.full(20, 500, np.int32), np.arange(1, 19), MASK, V, CONFIG, rng)[1].tolist())
    assert set(seen) == set(range(1, 19)) and max(seen.values()) < 1.2 * min(seen.values())


def small(made):
    """The documents with ids below V."""
    return [[[10 + id % 900 for id in sentence] for sentence in document] for document in made]


def test_rows():
    made, config = small(documents()), MaskingConfig(max_predictions=4, copies=2)
    rows = masked_rows([*made, [], [[]]], TOKENIZER, 32, config, seed=3)
    text = {tuple(s) for document in made for s in document}
    for n in range(len(rows["labels"])):
        tokens, size = rows["tokens"][n].copy(), rows["segment_ids"][n].sum()
        assert (rows["segment_ids"][n, :size] == 1).all() and (tokens[size:] == 0).all()
        real = rows["place_weights"][n] == 1
        assert real.sum() == min(4, max(1, round(0.15 * size))) and (rows["places"][n][~real] == 0).all()
        tokens[rows["places"][n][real]] = rows["targets"][n][real]
        seps = np.flatnonzero(tokens[:size] == TOKENIZER.sep_id)
        assert tokens[0] == TOKENIZER.cls_id and len(seps) == 2 and seps[1] == size - 1
        assert (rows["token_types"][n] == ((np.arange(32) > seps[0]) & (np.arange(32) < size))).all()
        assert {0, *seps}.isdisjoint(rows["places"][n][real])
    assert rows["row_weights"].sum() == len(rows["labels"]) and text
    assert set(rows["labels"]) == {NEXT, RANDOM}


def test_a_seed_gives_the_same_rows_and_another_other_ones():
    first, again, other = (masked_rows(small(documents()), TOKENIZER, 32, CONFIG, seed=s) for s in (1, 1, 2))
    assert all((first[name] == again[name]).all() for name in first)
    assert any(first[name].shape != other[name].shape or (first[name] != other[name]).any() for name in first)


def test_copies_differ():
    once, twice = (
        masked_rows(small(documents(5)), TOKENIZER, 32, MaskingConfig(copies=copies), seed=0)
        for copies in (1, 2)
    )
    count = len(once["labels"])
    assert len(twice["labels"]) > count and (twice["tokens"][:1] == once["tokens"][:1]).any()
    assert {tuple(row) for row in twice["tokens"][count:]} - {tuple(row) for row in once["tokens"]}


def test_refusals():
    for made, length in (([], 32), ([[]], 32), ([[[7, 8]]], 4)):
        with pytest.raises(DataError, match="no rows"):
            masked_rows(made, TOKENIZER, length, CONFIG, seed=0)


def test_special_pieces_of_a_tokenizer(tokenizer):
    from gptjax.data.tokenizers import BERT_SPECIALS, SPECIALS, Tokenizer

    bert = Tokenizer.train(["to be or not to be, that is the question " * 50], 300, BERT_SPECIALS)
    ids = [bert.end_of_text_id, bert.im_start_id, bert.im_end_id, bert.cls_id, bert.sep_id, bert.mask_id]
    assert [bert.piece(id) for id in ids] == [*SPECIALS, *BERT_SPECIALS] and ids == list(range(2, 8))
    assert set(ids).isdisjoint(bert.encode("[CLS] to be [SEP] [MASK]"))
    assert bert.decode([bert.cls_id, *bert.encode("to be"), bert.sep_id]) == "to be"
    with pytest.raises(DataError, match=r"no \[MASK\]"):
        _ = tokenizer.mask_id
