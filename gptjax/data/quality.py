"""Bad rows: counted by kind, shown, and fatal when there are too many."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from gptjax.errors import DATA, UserError

KINDS = (
    "not UTF-8",
    "not JSON",
    "missing field",
    "malformed field",
    "empty text",
    "unknown role",
    "no reply",
    "longer than the context",
)


def missing_of(row: Mapping, fields: Iterable[str]) -> str:
    """The fault of a row that lacks one of these fields, "" when it has all."""
    missing = next((field for field in fields if field not in row), None)
    return "" if missing is None else f"missing field: {missing}"


class DataError(UserError):
    """Data that can't be used: the message names the file, the line and the remedy."""

    exit_code = DATA


class BadRows:
    """The rows of a source that had to be left out, by kind, with the first five places.

    One object may be handed through several readers; its counts add up.
    """

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.good_rows = 0
        self.repeated = 0
        self.left_out: Counter[str] = Counter()
        self.first: list[tuple[str, str, int]] = []

    @property
    def bad_rows(self) -> int:
        """Number of bad rows of every kind."""
        return self.counts.total()

    def add(self, fault: str, file: str | Path, line: int) -> None:
        """Counts one bad row at `file`, `line` (from 1).

        Its fault is one of KINDS, or one with what is wrong after it, as in "missing field: ranking".

        Raises ValueError for a kind that is not in KINDS.
        """
        kind = fault.partition(":")[0]
        if kind not in KINDS:
            raise ValueError(f"unknown kind of bad row {kind!r}: use one of {', '.join(KINDS)}")
        self.counts[kind] += 1
        if len(self.first) < 5:
            self.first.append((fault, str(file), line))

    def good(self) -> None:
        """Counts one row that was used."""
        self.good_rows += 1

    def repeat(self, count: int) -> None:
        """Counts `count` good rows that are left out because they occur twice."""
        self.repeated += count

    def leave_out(self, why: str, count: int = 1) -> None:
        """Counts what a source's own rules leave out, by the rule; it is neither good nor bad."""
        self.left_out[why] += count

    def include(self, other: "BadRows") -> None:
        """Adds the counts of another source."""
        self.counts += other.counts
        self.good_rows += other.good_rows
        self.repeated += other.repeated
        self.left_out += other.left_out
        self.first = (self.first + other.first)[:5]

    def check(self, limit: float = 0.001) -> None:
        """Raises DataError, naming the first five bad rows, when bad / (bad + good) exceeds `limit`."""
        if self.bad_rows > limit * (self.bad_rows + self.good_rows):
            places = "; ".join(f"{file}:{line} ({fault})" for fault, file, line in self.first)
            tolerated = f"more than the {limit:.1%} that is tolerated" if limit else "where none may be"
            raise DataError(f"{self.summary()}, {tolerated}: mend or remove them. The first: {places}")

    def summary(self) -> str:
        """One line: how many rows of how many are bad, of which kinds, and what else was left out."""
        total = self.bad_rows + self.good_rows
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items()))
        twice = f", {self.repeated} left out that occur twice" if self.repeated else ""
        rules = "; ".join(f"{count} {why}" for why, count in sorted(self.left_out.items()))
        bad = f"{self.bad_rows} of {total} rows are bad" + (f" ({kinds})" if kinds else "")
        bad = bad if total else "no rows that could be bad"
        return bad + twice + (f", left out by rule: {rules}" if rules else "")
