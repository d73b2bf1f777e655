"""Small sums as dialogues whose answers can be checked, in the form of GSM8K (Cobbe et al. 2021)."""

from itertools import product

BELOW = 10  # both summands are below it


def sums() -> list[list[dict[str, str]]]:
    """Every sum of two numbers below BELOW, asked and answered: "What is 7 plus 5?", "#### 12"."""
    return [
        [
            {"role": "user", "content": f"What is {one} plus {other}?"},
            {"role": "assistant", "content": f"#### {one + other}"},
        ]
        for one, other in product(range(BELOW), repeat=2)
    ]
