"""Tasks that are learnt from examples in the context alone (Brown et al. 2020, sections 1 and 3.9).

Majority: a text has a digit of its own, which half of its pairs show while the others show any. The more
pairs have been read, the better the next can be told; nothing about the digit can be learnt by heart.
Addition: GPT-3's questions about sums.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LETTERS = "abcdefghij"
DIGITS = "0123456789"
OWN_SHARE = 0.5
PAIRS = 20
TEXTS = {"train": 20_000, "heldout": 300}


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


def majority_text(rng: np.random.Generator, pairs: int = PAIRS) -> str:
    """Pairs such as " c3 d7 a3": any letter, and the text's own digit or, as often, any digit."""
    own, any_digit = rng.integers(0, 10), rng.integers(0, 10, pairs)
    digits = np.where(rng.random(pairs) < OWN_SHARE, own, any_digit)
    letters = rng.choice(list(LETTERS), pairs)
    return "".join(f" {letter}{digit}" for letter, digit in zip(letters, digits, strict=True))


def majority_texts(split: str) -> list[str]:
    """The generated texts of a split: the same on every call, the splits' seeds apart."""
    rng = np.random.default_rng([0, split == "heldout"])
    return [majority_text(rng) for _ in range(TEXTS[split])]


def best_guess(digits: str) -> float:
    """Probability that the most probable next digit of a text comes, after these.

    `p(next | digits) = sum over d of p(d | digits) p(next | d)`, d the text's own digit, evenly distributed.
    """
    miss = (1 - OWN_SHARE) / len(DIGITS)
    shows = np.full((10, 10), miss) + OWN_SHARE * np.eye(10)  # own digit, shown digit
    posterior = np.prod(shows[:, [int(digit) for digit in digits]], axis=1)
    return float((posterior / posterior.sum() @ shows).max())


def majority_question(rng: np.random.Generator, shots: int) -> Question:
    """The digit of the next pair of a fresh text after `shots` pairs of it."""
    text = majority_text(rng, pairs=shots + 1)
    prompt, digit = text[:-1], text[-1]
    return Question(prompt, digit, tuple(DIGITS), best_guess(prompt[2::3]))


def addition_question(rng: np.random.Generator, shots: int, digits: int = 2) -> Question:
    """Sums such as "Q: What is 98 plus 45?\\nA: 143" (appendix G) of numbers below `10 ** digits`."""
    sums = rng.integers(0, 10**digits, (shots + 1, 2)).tolist()
    *examples, last = (f"Q: What is {a} plus {b}?\nA:" for a, b in sums)
    before = "".join(f"{text} {a + b}\n\n" for text, (a, b) in zip(examples, sums, strict=False))
    return Question(before + last, f" {sum(sums[-1])}")


TASKS: dict[str, Callable[[np.random.Generator, int], Question]] = {
    "majority": majority_question,
    "addition": addition_question,
}


def questions(task: str, shots: int, count: int, seed: int) -> list[Question]:
    """`count` questions of a task with K = `shots` examples each, a function of the arguments alone.

    Args:
        task: one of TASKS.
    """
    rng = np.random.default_rng([seed, shots, list(TASKS).index(task)])
    return [TASKS[task](rng, shots) for _ in range(count)]
