"""Labelers: noise has the rate asked for, files by people are read row by row, and what is wrong is named."""

import json

import jax
import numpy as np
import pytest

from gptjax.config import ConfigError
from gptjax.data.preferences import RankedReplies, read_preferences
from gptjax.data.quality import DataError
from gptjax.errors import WAITING
from gptjax.stages.labels import (
    LabelerConfig,
    contrary,
    labelled,
    preference_row,
    rank,
    read_labels,
    write_union,
)

GOLD = "runs/gold"


def labeler(**noise):
    return LabelerConfig(reward=GOLD, **noise)


def samples_of(count, replies=3):
    return [
        {
            "prompt": [{"role": "user", "content": f"ask {n}"}],
            "completions": [f"reply {n} {k}" for k in range(replies)],
            "source": "first",
        }
        for n in range(count)
    ]


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def test_without_noise_ranks_are_the_order_and_equal_scores_tie():
    scores = np.array([[0.5, 2.0, -1.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(rank(scores, labeler(), jax.random.key(0)), [[3, 1, 4, 1], [1, 1, 1, 1]])


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_noise_of_choices_is_that_of_bradley_and_terry(temperature):
    scores = np.tile([1.0, 0.0, -2.0], (20_000, 1))
    ranks = rank(scores, labeler(temperature=temperature), jax.random.key(1))
    assert all(sorted(row) == [1, 2, 3] for row in ranks[:50].tolist())
    for better, worse in ((0, 1), (1, 2), (0, 2)):
        share = np.mean(ranks[:, better] < ranks[:, worse])
        expected = 1 / (1 + np.exp(-(scores[0, better] - scores[0, worse]) / temperature))
        assert share == pytest.approx(expected, abs=0.012)  # more than three standard errors


@pytest.mark.parametrize("flip", [0.1, 0.5])
@pytest.mark.parametrize("replies", [2, 4])
def test_pairs_are_flipped_at_the_rate_asked_for(flip, replies):
    scores = np.tile(np.arange(replies, dtype=float), (20_000, 1))
    ranks = rank(scores, labeler(flip=flip), jax.random.key(2))
    samples = [RankedReplies([], [""] * replies, [-float(r) for r in row]) for row in ranks]
    assert contrary(samples, scores) == pytest.approx(flip, abs=0.012)
    assert np.mean(ranks[:, 0] < ranks[:, 1]) == pytest.approx(flip, abs=0.012)


def test_contrary_pairs_are_counted_by_hand():
    labels = [
        RankedReplies([], ["a", "b", "c"], [3.0, 2.0, 1.0]),
        RankedReplies([], ["d", "e", "f"], [1, 1, 0]),
    ]
    rewards = np.array([[0.0, 1.0, -1.0], [5.0, 4.0, 4.0]])
    # Of five ordered pairs (d and e tie) a-b is contrary, and of e-f the rewards say nothing.
    assert contrary(labels, rewards) == pytest.approx(1.5 / 5)


def test_noise_that_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match="less than or equal to 0.5"):
        labeler(flip=0.6)
    with pytest.raises(ValueError, match="people bring theirs"):
        LabelerConfig(kind="human", temperature=1.0)


def test_a_simulated_labeler_writes_what_it_ranks_once(tmp_path):
    samples, scores = samples_of(4), np.arange(12.0).reshape(4, 3)
    first = labelled(labeler(temperature=1.0), samples, scores, jax.random.key(0), tmp_path)
    assert labelled(labeler(), samples, -scores, jax.random.key(9), tmp_path) == first  # the file is read
    read = read_preferences(tmp_path / "labels.jsonl")
    assert [ranked.scores for ranked in read] == [ranked.scores for ranked in first]
    assert {(ranked.labeler, ranked.source) for ranked in read} == {("simulated", "first")}


def test_people_are_told_what_to_write_and_where(tmp_path, capsys):
    folder = tmp_path / "round-1"
    folder.mkdir()
    people = LabelerConfig(kind="human")
    with pytest.raises(SystemExit) as left:
        labelled(people, samples_of(2), None, jax.random.key(0), folder)
    assert left.value.code == WAITING
    said = capsys.readouterr().out
    assert said.startswith("round-1 waits for its labels: add to every row of ") and "`ranking`" in said
    assert str(folder / "samples.jsonl") in said and str(folder / "labels.jsonl") in said
    rows = [row | {"ranking": [2, 1, 3], "labeler": "ann"} for row in samples_of(2)]
    write(folder / "labels.jsonl", rows)
    labels = labelled(people, samples_of(2), None, jax.random.key(0), folder)
    assert [(ranked.scores, ranked.labeler) for ranked in labels] == 2 * [([-2.0, -1.0, -3.0], "ann")]


def test_rows_and_replies_may_stand_in_another_order(tmp_path):
    samples = samples_of(3)
    rows = [sample | {"ranking": [1, 2, 2]} for sample in samples]
    turned = [
        row | {"completions": row["completions"][::-1], "ranking": row["ranking"][::-1]} for row in rows
    ]
    for row in turned:
        row.pop("source")
        row["prompt"] = row["prompt"][0]["content"]
    labels = read_labels(write(tmp_path / "labels.jsonl", turned[::-1]), samples)
    assert [ranked.completions for ranked in labels] == [sample["completions"] for sample in samples]
    assert [ranked.scores for ranked in labels] == 3 * [[-1.0, -2.0, -2.0]]
    assert [ranked.source for ranked in labels] == 3 * ["first"]


def test_two_replies_may_be_chosen_and_rejected(tmp_path):
    (sample,) = samples_of(1, replies=2)
    worse, better = sample["completions"]
    row = {"prompt": "ask 0", "chosen": better, "rejected": worse}
    (ranked,) = read_labels(write(tmp_path / "labels.jsonl", [row]), [sample])
    assert ranked.completions == [worse, better] and ranked.scores == [0.0, 1.0]


def spoil(rows, number, **changes):
    return [row | changes if n == number else row for n, row in enumerate(rows)]


ROWS = [sample | {"ranking": [1, 2, 3]} for sample in samples_of(3)]
OTHER = ["reply 1 0", "reply 1 1", "something else"]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            spoil(ROWS, 1, ranking=[1, 2]),
            r"labels.jsonl:2 \(malformed field: ranking has 2 numbers for 3 texts\)",
        ),
        (
            spoil(ROWS, 2, ranking="1 2 3"),
            r"labels.jsonl:3 \(malformed field: ranking must be a list of numbers",
        ),
        (
            [*ROWS[:2], {key: ROWS[2][key] for key in ("prompt", "completions")}],
            r":3 \(missing field: ranking\)",
        ),
        (spoil(ROWS, 1, completions=OTHER), "labels.jsonl:2 ranks what is no sample of this round"),
        ([*ROWS, ROWS[1]], "labels.jsonl:4 ranks what is no sample of this round, or a sample that another"),
        (ROWS[1:2], "has no ranking of 2 of 3 samples: add those of lines 1, 3 of samples.jsonl"),
    ],
)
def test_a_bad_or_missing_row_is_named(tmp_path, rows, sentence):
    with pytest.raises(DataError, match=sentence):
        read_labels(write(tmp_path / "labels.jsonl", rows), samples_of(3))


def test_rankings_that_changed_are_refused(tmp_path):
    rankings = [RankedReplies([{"role": "user", "content": "ask"}], ["a", "b"], [1.0, 0.0], labeler="ann")]
    write_union(tmp_path, rankings)
    write_union(tmp_path, rankings)
    assert read_preferences(tmp_path / "rankings.jsonl") == rankings
    assert preference_row(rankings[0])["ranking"] == [-1.0, -0.0]
    changed = [RankedReplies(rankings[0].prompt, ["a", "b"], [0.0, 1.0])]
    with pytest.raises(ConfigError, match="the rankings have changed since .*rankings.jsonl was written"):
        write_union(tmp_path, changed)
