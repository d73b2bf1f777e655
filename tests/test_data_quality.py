"""Bad rows are counted by kind and stop the run above the limit."""

import pytest

from gptjax.data.quality import BadRows, DataError
from gptjax.errors import UserError


def counted(bad: int, good: int) -> BadRows:
    rows = BadRows()
    for line in range(1, bad + 1):
        rows.add("empty text" if line % 2 else "not JSON", "data.jsonl", line)
    for _ in range(good):
        rows.good()
    return rows


def test_one_in_a_thousand_is_tolerated_and_more_is_not():
    counted(bad=1, good=999).check()
    with pytest.raises(DataError):
        counted(bad=1, good=998).check()
    counted(bad=1, good=9).check(limit=0.1)


def test_no_rows_at_all_are_no_fault_of_the_rows():
    counted(bad=0, good=0).check()


def test_the_first_five_are_named_with_file_and_line():
    with pytest.raises(DataError) as error:
        counted(bad=7, good=3).check()
    message = str(error.value)
    assert all(f"data.jsonl:{line} (" in message for line in range(1, 6))
    assert "data.jsonl:6" not in message
    assert "7 of 10 rows are bad (4 empty text, 3 not JSON)" in message


def test_summary_is_one_line():
    assert counted(bad=0, good=5).summary() == "0 of 5 rows are bad"
    assert counted(bad=1, good=1).summary() == "1 of 2 rows are bad (1 empty text)"


def test_unknown_kind_is_a_programming_error():
    with pytest.raises(ValueError, match="unknown kind"):
        BadRows().add("ugly", "data.jsonl", 1)


def test_data_error_is_a_user_error_with_its_own_exit_code():
    assert issubclass(DataError, UserError)
    assert DataError.exit_code == 65
