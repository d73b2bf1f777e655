"""The figures of one or several results beside their bars."""

import operator
import statistics
from collections.abc import Mapping, Sequence

MEETS = {"<": operator.lt, "<=": operator.le, ">=": operator.ge}


def figure_rows(results: Sequence[Mapping], columns: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The figures of several results side by side: name, values, bar, verdict, detail.

    Several have their mean and sample standard deviation as well, and the verdict is that of the mean; the
    detail is the first one's.

    Returns:
        the header and the rows.
    """
    by_name = [{figure["name"]: figure for figure in result.get("figures", [])} for result in results]
    rows = []
    for name in dict.fromkeys(name for figures in by_name for name in figures):
        found = [(column, figures.get(name)) for column, figures in zip(columns, by_name, strict=True)]
        known = [(column, figure) for column, figure in found if figure]
        values = [number(figure["value"]) if figure else "" for _, figure in found]
        if len(results) > 1:
            values.append(_mean([figure["value"] for _, figure in known]))
        first = known[0][1]
        rows.append([name, *values, number(first["bar"]), verdict(known), str(first.get("detail") or "")])
    return ["figure", *columns, *["mean"] * (len(results) > 1), "bar", "verdict", "detail"], rows


def verdict(figures: Sequence[tuple[str, Mapping]]) -> str:
    """Whether the mean of a figure of several runs, (run, row) each, meets the bar, and who misses it."""
    some_met = any(figure["met"] for _, figure in figures)
    missed = {run: figure["bar"] for run, figure in figures if figure["met"] is False}
    if not missed:
        return "met" if some_met else ""
    sign, bound = next(iter(missed.values())).split()
    mean = statistics.mean(figure["value"] for _, figure in figures)
    met = some_met and MEETS[sign](mean, float(bound))
    return f"met, but missed by {', '.join(missed)}" if met else "missed"


def number(value: object) -> str:
    """A cell of a table: four digits of a float, nothing for None."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _mean(values: Sequence[float]) -> str:
    if len(values) == 1:
        return number(float(values[0]))
    return f"{statistics.mean(values):.4g} ± {statistics.stdev(values):.2g}"
