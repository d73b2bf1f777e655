import doctest
from decimal import Decimal

import pytest

from gptjax.evaluation import answers
from gptjax.evaluation.answers import final_answer, is_right


def test_examples_run():
    results = doctest.testmod(answers)
    assert results.attempted == 3 and results.failed == 0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Natalia sold 48/2 = <<48/2=24>>24 clips.\n#### 72", "72"),  # the form of the data set's rows
        ("####72", "72"),
        ("####    72   \n\n", "72"),
        ("#### 72.", "72"),
        ("#### -7", "-7"),
        ("#### - 7", "-7"),
        ("#### +7", "7"),
        ("#### \u22127", "-7"),
        ("#### 1,234,567.890", "1234567.89"),
        ("#### 12,345", "12345"),
        ("#### 0.5", "0.5"),
        ("#### .5", "0.5"),
        ("#### 007", "7"),
        ("#### -0", "0"),
        ("#### 5 #### 5.0", "5"),
        ("#### 5\nso\n#### 5", "5"),
        ("#### " + "9" * 10_000, "9" * 10_000),
    ],
)
def test_numbers_that_are_answers(text, number):
    assert final_answer(text) == Decimal(number)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "72",
        "The answer is 72.",
        "####",
        "#### ",
        "#### seventy-two",
        "#### 72 apples",
        "#### $72",
        "#### 72%",
        "#### 7 2",
        "#### 1,23",
        "#### 1234,567",
        "#### ,123",
        "#### 1,,234",
        "#### 1.2.3",
        "#### 1e3",
        "#### 0x48",
        "#### 144/2",
        "#### --7",
        "#### -",
        "#### .",
        "#### nan",
        "#### inf",
        "#### \u0667\u0662",  # Arabic-Indic digits
        "#### \uff17\uff12",  # full-width digits
        "### 72",
        "#### 71 #### 72",
        "#### #### 72",
        "#### 72 ####",
        "#### 72\nno, wait, it is 73",
        "##### 72",
    ],
)
def test_text_that_gives_no_answer(text):
    assert final_answer(text) is None
    assert not is_right(text, "#### 72")


def test_equal_numbers_are_right_however_they_are_written():
    assert is_right("so 1000\n#### 1,000.00", "#### 1000")
    assert not is_right("#### 1000.0000000000000000000000000000001", "#### 1000")
    assert not is_right("#### 42", "#### -42")


def test_no_answer_is_never_right_even_where_none_is_expected():
    assert not is_right("no idea", "no answer")
