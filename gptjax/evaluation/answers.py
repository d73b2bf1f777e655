"""Checked answers: the number after "####" at the end of a reply, as GSM8K writes it (Cobbe et al. 2021)."""

import re
from decimal import Decimal

MARK = "####"
# Digits in groups of three or without commas; ASCII, since \d would take digits of every script.
_NUMBER = re.compile(r"([+-]?)\s*((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)\.?")


def final_answer(text: str) -> Decimal | None:
    """The number that a text ends with after its mark; None when there is no such number.

    Commas between thousands, a sign and a full stop at the end are allowed, words and units are not. Text
    that gives several answers gives none, unless they are the same number: who may answer twice need not
    know which is right.

    Example:
        >>> final_answer("6 x 7 = 42\\n#### 42"), final_answer("#### -1,234.50")
        (Decimal('42'), Decimal('-1234.50'))
        >>> final_answer("It is 42."), final_answer("#### 41 or #### 42")
        (None, None)
    """
    _, *parts = text.replace("\u2212", "-").split(MARK)  # the sign that books print for minus
    found = [_NUMBER.match(part.lstrip()) for part in parts]
    if not found or None in found:
        return None
    last = parts[-1].lstrip()
    if last[found[-1].end() :].strip():
        return None
    numbers = {Decimal(match[1] + match[2].replace(",", "")) for match in found}
    return numbers.pop() if len(numbers) == 1 else None


def is_right(reply: str, expected: str) -> bool:
    """Whether a reply ends with the answer that the expected text ends with; 42.0 is 42.

    Example:
        >>> is_right("#### 42.0", "#### 42"), is_right("42", "#### 42")
        (True, False)
    """
    answer = final_answer(reply)
    return answer is not None and answer == final_answer(expected)
