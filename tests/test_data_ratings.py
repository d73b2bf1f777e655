"""The rated texts: complete, split without leaks, asked for and ranked as InstructGPT's data are."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from gptjax.data.duplicates import clusters, duplicate_pairs, jaccard, shingles, word_set, words
from gptjax.data.quality import DataError
from gptjax.data.ratings import (
    INSTRUCTIONS,
    RatedText,
    demonstrations,
    first_words_of,
    instruction_for,
    instructions,
    load_ratings,
    ranked_replies,
    split_ratings,
)


@pytest.fixture(scope="module")
def split():
    return split_ratings(load_ratings())


def rated(text, votes=(1,), source="tweets", id="tweets/1"):
    return RatedText(id, source, text, tuple(votes))


def test_all_texts_and_votes_are_there():
    texts = load_ratings()
    assert Counter(text.source for text in texts) == {
        "tweets": 4200,
        "movie_reviews": 10605,
        "product_reviews": 3708,
        "editorials": 5190,
    }
    assert len({text.id for text in texts}) == 23703
    assert all(text.text == text.text.strip() != "" for text in texts)
    assert all(len(text.votes) >= 15 and set(text.votes) <= set(range(-4, 5)) for text in texts)


def test_a_known_text_has_its_published_mean_and_its_entities():
    by_id = {text.id: text for text in load_ratings()}
    assert by_id["movie_reviews/1"].mean == pytest.approx(34 / 15)
    assert by_id["movie_reviews/3"].text == "Effective but too tepid biopic"
    assert by_id["tweets/3"].mean == pytest.approx(2.873684211)
    assert "last night &amp; the love" in by_id["tweets/3"].text


def test_split_is_80_to_20_in_every_source_and_loses_nothing(split):
    train, heldout = split
    assert sorted(t.id for t in train + heldout) == sorted(t.id for t in load_ratings())
    for source in INSTRUCTIONS:
        held = sum(t.source == source for t in heldout)
        assert 0.17 < held / sum(t.source == source for t in train + heldout) < 0.23


def test_split_does_not_depend_on_the_order_of_the_texts(split):
    heldout = {t.id for t in split_ratings(load_ratings()[::-1])[1]}
    assert heldout == {t.id for t in split[1]}


def test_near_duplicates_are_found():
    texts = [
        "Damn, running late sucks. I hate this bus.",
        "DAMN!! running late SUCKS!! I hate this bus!!",
        "the cat sat on the mat and then it slept all day long",
        "the cat sat on the mat and then it slept all day today",
        "Great movie!",
        "movie, great",
        "Great film!",
        "!!!",
    ]
    names = clusters(texts, [f"t{n}" for n in range(len(texts))])
    assert names == ["t0", "t0", "t2", "t2", "t4", "t4", "t6", "t7"]


def test_texts_of_nearly_the_same_words_are_near_duplicates_whatever_their_order():
    texts = [
        "Ugh! I hate getting blood drawn!",
        "UGH! I HATE HATE HATE getting blood drawn!",
        "one two three four five",
        "five one three two four six",
        "six seven five one three two four",
        "so bad",
        "bad bad, so bad so",
    ]
    names = clusters(texts, [f"t{n}" for n in range(len(texts))])
    assert names == ["t0", "t0", "t2", "t2", "t2", "t5", "t6"]


def test_no_text_of_nearly_the_same_words_crosses_the_split(split):
    """Compared in whole numbers, by another search."""
    sides = [
        [set(words(t.text)) for t in part if t.source == "tweets" and len(words(t.text)) >= 5]
        for part in split
    ]
    by_word = defaultdict(list)
    for own in sides[0]:
        for word in own:
            by_word[word].append(own)
    for own in sides[1]:
        # A text that shares four fifths of the words shares one of the rarest third.
        rare = sorted(own, key=lambda word: len(by_word[word]))[: len(own) // 3 + 1]
        for other in (other for word in rare for other in by_word[word]):
            assert 5 * len(own & other) < 4 * len(own | other), (own, other)


def test_clusters_chain_and_take_the_least_name():
    sets = [frozenset("abcd"), frozenset("abcdef"), frozenset("cdefgh"), frozenset("xyz")]
    assert list(duplicate_pairs(sets)) == [(0, 1), (1, 2)]
    assert jaccard(sets[0], sets[1]) == pytest.approx(4 / 6)


@pytest.mark.parametrize(("parts", "threshold", "least"), [(shingles, 0.5, 50), (word_set, 0.8, 20)])
def test_prefix_filter_equals_the_comparison_of_all_pairs(parts, threshold, least):
    sets = [parts(text.text) for text in load_ratings()[3200:4200]]
    every = [
        (i, j)
        for j in range(len(sets))
        for i in range(j)
        if sets[i] and sets[j] and jaccard(sets[i], sets[j]) >= threshold
    ]
    assert sorted(duplicate_pairs(sets, threshold)) == sorted(every)
    assert len(every) > least


def test_prefix_filter_is_exact_where_the_product_is_not():
    assert 0.55 * 100 > 55
    assert list(duplicate_pairs([frozenset(range(55)), frozenset(range(100))], 0.55)) == [(0, 1)]


def test_no_duplicate_that_minhash_finds_crosses_the_split(split):
    rensa = pytest.importorskip("rensa", reason="rensa (extra: dev) is the independent finder of duplicates")
    train, heldout = split
    index = rensa.RMinHashLSH(threshold=0.5, num_perm=128, num_bands=32)

    def sketch(text):
        minhash = rensa.RMinHash(num_perm=128, seed=0)
        minhash.update([" ".join(shingle) for shingle in shingles(text.text)])
        return minhash

    for number, text in enumerate(train):
        index.insert(number, sketch(text))
    candidates = 0
    for text in heldout:
        for number in index.query(sketch(text)):
            candidates += 1
            assert jaccard(shingles(text.text), shingles(train[number].text)) < 0.5, (text, train[number])
    assert candidates > 0


def test_instructions_name_the_source_and_give_the_first_words():
    text = rated("The plot  is thin, but fun.", source="movie_reviews")
    assert instruction_for(text) == "Write a movie review."
    assert instruction_for(text, 2) == 'Write a movie review that begins with "The plot".'
    assert instruction_for(text, 3) == 'Write a movie review that begins with "The plot  is".'
    assert instruction_for(text) in instructions("movie_reviews")
    for source in INSTRUCTIONS:
        assert len(set(instructions(source))) >= 3


def test_first_words_never_give_the_whole_text_away():
    assert first_words_of("Simply great", 4) == "Simply"
    assert first_words_of("Touché!", 1) == ""
    assert instruction_for(rated("LMAO"), 3) == "Write a tweet."


def test_demonstrations_reply_with_the_whole_text_half_of_them_to_a_beginning(split):
    texts = split[1]
    dialogues = demonstrations(texts, seed=0)
    assert [d[1]["content"] for d in dialogues] == [t.text for t in texts]
    assert {tuple(m["role"] for m in d) for d in dialogues} == {("user", "assistant")}
    given = [d for d in dialogues if "begins with" in d[0]["content"]]
    assert 0.45 < len(given) / len(dialogues) < 0.55
    for user, assistant in given:
        beginning = user["content"].split('begins with "')[1].removesuffix('".')
        assert assistant["content"].startswith(beginning)
        assert 1 <= len(beginning.split()) <= 4
    assert demonstrations(texts, seed=0) == dialogues != demonstrations(texts, seed=1)


def test_ranked_replies_have_k_distinct_means_of_one_source(split):
    judged = {(t.source, t.text, t.mean) for t in split[1]}
    groups = ranked_replies(split[1], groups=500, seed=0)
    assert len(groups) == 500
    assert {len(g.completions) for g in groups} == set(range(4, 10))
    asked = {phrase: source for source in INSTRUCTIONS for phrase in INSTRUCTIONS[source]}
    for group in groups:
        content = group.prompt[0]["content"]
        source = asked[content.split(" that begins")[0].rstrip(".")]
        assert {(source, *reply) for reply in zip(group.completions, group.scores, strict=True)} <= judged
        assert len(set(group.scores)) == len(set(group.completions)) == len(group.completions)
        if "begins with" in content:
            beginning = content.split('begins with "')[1].removesuffix('".')
            assert all(c.startswith(beginning) for c in group.completions)
    given = sum("begins with" in g.prompt[0]["content"] for g in groups)
    assert 0.3 < given / len(groups) < 0.7


def test_ranked_replies_use_nearly_every_text_once_a_pass(split):
    train = split[0]
    groups = ranked_replies(train, groups=2900, seed=1)
    used = Counter(c for g in groups for c in g.completions)
    assert len(used) > 0.9 * len({t.text for t in train})
    repeats = Counter(t.text for t in train)
    assert all(count <= repeats[text] for text, count in used.items())


def test_ranked_replies_of_one_source_and_of_a_seed(split):
    groups = ranked_replies(split[1], groups=20, seed=3, source="editorials", k_min=5, k_max=5)
    assert all(len(g.completions) == 5 for g in groups)
    assert all("editorial" in g.prompt[0]["content"] or "opinion" in g.prompt[0]["content"] for g in groups)
    again = ranked_replies(split[1], groups=20, seed=3, source="editorials", k_min=5, k_max=5)
    assert again == groups
    assert ranked_replies(split[1], groups=20, seed=4, source="editorials", k_min=5, k_max=5) != groups


def test_equal_means_are_never_paired_and_too_few_texts_are_an_error():
    same = [rated(f"text number {n}", votes=(n % 3,), id=f"tweets/{n}") for n in range(30)]
    with pytest.raises(DataError, match="30 rated texts are too few"):
        ranked_replies(same, groups=1, seed=0)
    four = [rated(f"text number {n}", votes=(n,), id=f"tweets/{n}") for n in range(4)]
    assert sorted(ranked_replies(four, groups=1, seed=0)[0].scores) == [0, 1, 2, 3]


def test_more_positive_texts_score_higher_than_more_negative_ones():
    by_id = {text.id: text for text in load_ratings()}
    assert np.sign(by_id["tweets/1"].mean - by_id["tweets/5"].mean) == 1
