"""Tasks shown in the context: answers are right, what can be known is known, every call gives the same."""

import numpy as np
import pytest

from gptjax.data.corpora import read_documents
from gptjax.data.in_context import DIGITS, LETTERS, TASKS, best_guess, majority_text, questions


def test_half_of_a_text_s_pairs_show_its_own_digit():
    shares = []
    for seed in range(200):
        text = majority_text(np.random.default_rng(seed), pairs=50)
        words = text.split()
        assert len(words) == 50 and {word[0] for word in words} <= set(LETTERS)
        digits = [word[1:] for word in words]
        assert set(digits) <= set(DIGITS)
        shares.append(max(map(digits.count, digits)) / 50)
    assert abs(np.mean(shares) - 0.55) < 0.02


def test_the_best_guess_by_hand():
    assert best_guess("") == pytest.approx(0.1)
    after_one = 0.55 * 0.55 + 9 * 0.05 * 0.05
    assert best_guess("3") == pytest.approx(after_one)
    twice = (0.55**2 * 0.55 + 9 * 0.05**2 * 0.05) / (0.55**2 + 9 * 0.05**2)
    assert best_guess("33") == pytest.approx(twice)
    assert best_guess("33") > best_guess("34") > best_guess("")
    assert best_guess("3" * 30) == pytest.approx(0.55)


@pytest.mark.parametrize("shots", [0, 1, 4, 16])
def test_the_best_reader_is_right_as_often_as_promised(shots):
    asked = questions("majority", shots, 2000, seed=0)
    right = []
    for question in asked:
        digits = question.prompt[2::3]
        assert len(question.prompt) == 3 * shots + 2 and question.answer in question.choices
        right.append(question.answer == (max(digits, key=digits.count) if digits else "0"))
    assert abs(np.mean(right) - np.mean([q.best for q in asked])) < 0.035


def test_addition_is_in_the_paper_s_form():
    question = questions("addition", 2, 1, seed=0)[0]
    *examples, last = question.prompt.split("\n\n")
    assert len(examples) == 2
    for text in [*examples, last + question.answer]:
        words = text.removeprefix("Q: What is ").replace("?\nA:", " is").split()
        assert [words[1], words[3]] == ["plus", "is"] and int(words[0]) + int(words[2]) == int(words[4])


@pytest.mark.parametrize("task", TASKS)
def test_questions_are_a_function_of_their_arguments(task):
    assert questions(task, 3, 5, seed=1) == questions(task, 3, 5, seed=1)
    assert len({q.prompt for seed in (1, 2) for q in questions(task, 3, 5, seed=seed)}) == 10


def test_the_texts_to_train_on_are_split():
    train, heldout = (read_documents("majority", split=split) for split in ("train", "heldout"))
    assert len(train) == 20_000 and len(heldout) == 300
    assert not {d.text for d in train} & {d.text for d in heldout}
