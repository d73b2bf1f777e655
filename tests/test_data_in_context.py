"""Tasks shown in the context: answers are right, what can be known is known, every call gives the same."""

import numpy as np
import pytest

from gptjax.data.corpora import read_documents
from gptjax.data.in_context import DIGITS, LETTERS, RECALL_KEYS, TASKS, questions, recall_text


def pairs(text):
    return [(word[0], word[1:]) for word in text.split()]


def test_a_recall_text_gives_each_letter_one_digit():
    for seed in range(20):
        text = recall_text(np.random.default_rng(seed))
        found = pairs(text)
        assert len(found) == 20 and len(set(found)) == len(dict(found)) <= RECALL_KEYS
        assert set(dict(found)) <= set(LETTERS) and set(dict(found).values()) <= set(DIGITS)


@pytest.mark.parametrize("shots", [0, 1, 4, 16])
def test_a_recall_question_can_be_answered_if_its_letter_is_listed(shots):
    asked = questions("recall", shots, 400, seed=0)
    for question in asked:
        *listed, (letter, _) = pairs(question.prompt)
        assert len(listed) == shots and question.answer in question.choices
        listed = dict(listed)
        assert question.best == (1.0 if letter in listed else 0.1)
        assert letter not in listed or listed[letter] == question.answer
    unseen = (1 - 1 / RECALL_KEYS) ** shots
    assert abs(np.mean([q.best for q in asked]) - (1 - 0.9 * unseen)) < 0.06


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
    train, heldout = (read_documents("recall", split=split) for split in ("train", "heldout"))
    assert len(train) == 20_000 and len(heldout) == 300
    assert not {d.text for d in train} & {d.text for d in heldout}
