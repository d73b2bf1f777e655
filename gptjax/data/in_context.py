"""Tasks that are learnt from examples in the context alone (Brown et al. 2020, sections 1 and 3.9).

Recall: a text gives each of a few letters a random digit and lists pairs of them; a letter that has been
listed can be answered, one that has not can only be guessed. Nothing about the digits can be learnt by heart.
Addition: GPT-3's questions about sums.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LETTERS = "abcdefghij"
DIGITS = "0123456789"
RECALL_KEYS = 4
RECALL_PAIRS = 20
RECALL_TEXTS = {"train": 20_000, "heldout": 300}


@dataclass(frozen=True)
class Question:
    """A prompt with K examples in it, and its answer.

    Attributes:
        prompt: ends where the answer begins.
        answer: what has to follow.
        choices: all that could follow in this form, the answer among them; () for a free answer.
        best: probability that the best reader of the prompt answers rightly.
    """

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    best: float = 1.0


def recall_text(rng: np.random.Generator, keys: int = RECALL_KEYS, pairs: int = RECALL_PAIRS) -> str:
    """A list of pairs such as " c3 d7 c3": `keys` letters with a random digit each, drawn evenly."""
    letters = rng.choice(list(LETTERS), keys, replace=False)
    digits = rng.choice(list(DIGITS), keys)
    return "".join(f" {letters[i]}{digits[i]}" for i in rng.integers(0, keys, pairs))


def recall_texts(split: str) -> list[str]:
    """The generated texts of a split: the same on every call, the splits' seeds apart."""
    rng = np.random.default_rng([0, split == "heldout"])
    return [recall_text(rng) for _ in range(RECALL_TEXTS[split])]


def recall_question(rng: np.random.Generator, shots: int) -> Question:
    """A letter of a fresh text after `shots` pairs of it; answerable if it is among them, else one in ten."""
    text = recall_text(rng, pairs=shots + 1)
    prompt, digit = text[:-1], text[-1]
    known = prompt[-1] in prompt[:-1]
    return Question(prompt, digit, tuple(DIGITS), 1.0 if known else 1 / len(DIGITS))


def addition_question(rng: np.random.Generator, shots: int, digits: int = 2) -> Question:
    """ "Q: What is 98 plus 45?\\nA: 143" (appendix G), numbers drawn evenly below `10 ** digits`."""
    sums = rng.integers(0, 10**digits, (shots + 1, 2)).tolist()
    *examples, last = (f"Q: What is {a} plus {b}?\nA:" for a, b in sums)
    before = "".join(f"{text} {a + b}\n\n" for text, (a, b) in zip(examples, sums, strict=False))
    return Question(before + last, f" {sum(sums[-1])}")


TASKS: dict[str, Callable[[np.random.Generator, int], Question]] = {
    "recall": recall_question,
    "addition": addition_question,
}


def questions(task: str, shots: int, count: int, seed: int) -> list[Question]:
    """`count` questions of a task with K = `shots` examples each, a function of the arguments alone.

    Args:
        task: one of TASKS.
    """
    rng = np.random.default_rng([seed, shots, list(TASKS).index(task)])
    return [TASKS[task](rng, shots) for _ in range(count)]
