"""Noisy copies of questions: a small model shall answer to a question's words, not to its exact form."""

import re

import numpy as np

from gptjax.data.chat import Messages

OPENERS = (
    "hey, ",
    "hello, ",
    "quick question: ",
    "I wonder, ",
    "so, ",
    "well, ",
    "one more thing: ",
    "I forgot, ",
)
CLOSERS = (" please", ", do you know", ", any idea", " then", ", I mean", " again")


def reword(dialogues: list[Messages], copies: int, seed: int) -> list[Messages]:
    """The dialogues and `copies` noisy versions of each, the user's words changed and the replies kept.

    Words of a user's message are dropped (one in seven), neighbours swapped (one in ten), an opener or a
    closer added (one in three each), the case lowered and end punctuation stripped (one in two each).

    Args:
        dialogues: messages with "role" and "content".
        copies: versions of each besides the original.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    reworded = list(dialogues)
    for _ in range(copies):
        for messages in dialogues:
            reworded.append(
                [{**m, "content": noisy(m["content"], rng)} if m["role"] == "user" else m for m in messages]
            )
    return reworded


def noisy(text: str, rng: np.random.Generator) -> str:
    """One noisy version of a message; at least one of its words stays."""
    words = text.split()
    kept = [word for word in words if rng.random() > 1 / 7] or words
    for i in range(len(kept) - 1):
        if rng.random() < 0.1:
            kept[i], kept[i + 1] = kept[i + 1], kept[i]
    text = " ".join(kept)
    if rng.random() < 0.5:
        text = re.sub(r"[?.!]+$", "", text)
    if rng.random() < 1 / 3:
        text = OPENERS[rng.integers(len(OPENERS))] + text
    if rng.random() < 1 / 3:
        text = text + CLOSERS[rng.integers(len(CLOSERS))]
    return text.lower() if rng.random() < 0.5 else text
