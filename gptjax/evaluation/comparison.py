"""Arms of an ablation side by side: tables, remarks and a drawing."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from gptjax.config import ConfigError
from gptjax.evaluation import charts, statistics
from gptjax.evaluation.arms import Arm, choose_baseline, measure, read_arms
from gptjax.evaluation.document import Table, markdown_table
from gptjax.evaluation.latex import latex_table


def write_comparison(
    targets: Sequence[str | Path],
    metrics: Sequence[str],
    baseline: str = "",
    runs: Path = Path("runs"),
    latex: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Prints a table in Markdown for every metric, and writes them for LaTeX and as a drawing.

    Args:
        targets: sweep files or run folders.
        metrics: see `measure`.
        baseline: the arm that others are compared with; "" takes the sweep's, or the first with the figure.
        runs: the folder of all runs.
        latex: file for the tables, without it none.
        plot: file for the drawing, PNG or SVG; without it none.

    Raises:
        ConfigError: the arms, their runs or a metric cannot be used, or the drawing's ending is another.
        MissingPackage: a drawing is asked for and matplotlib is not installed.
    """
    if plot is not None and plot.suffix.lower() not in (".png", ".svg"):
        raise ConfigError(f"--plot {plot} must end in .png or .svg")
    folders, of_sweep = read_arms(targets, runs)
    tables, panels = [], {}
    for metric in metrics:
        arms = measure(folders, metric)
        chosen = choose_baseline(arms, baseline or of_sweep, metric)
        tables.append(comparison_table(arms, chosen))
        drawn = sorted(arms, key=lambda arm: arm is not chosen)
        panels[metric] = {arm.name: (list(arm.values.values()), arm.interval) for arm in drawn}
        print(f"## {metric}\n\n{markdown_table(tables[-1])}\n")
        for sentence in remarks(arms, chosen, folders):
            print(sentence)
        print()
    if latex is not None:
        latex.parent.mkdir(parents=True, exist_ok=True)
        text = [f"% {metric}\n{latex_table(table)}\n" for metric, table in zip(metrics, tables, strict=True)]
        latex.write_text("\n".join(text), "utf-8")
        print(f"wrote {latex}")
    if plot is not None:
        charts.write_comparison(plot, panels)
        print(f"wrote {plot}")


def comparison_table(arms: Sequence[Arm], baseline: Arm) -> Table:
    """Mean, spread and interval of every arm, and what sets it apart from the baseline."""
    digits = _decimals([arm.deviation for arm in arms])
    header = ("arm", "n", "mean", "sd", "95 % interval", "minus baseline", "95 % interval", "p", "verdict")
    rows = []
    for arm in arms:
        cells = [arm.name, str(len(arm.values)), *_numbers([arm.mean, arm.deviation], digits)]
        cells.append(_interval(arm.interval, digits))
        difference = None if arm is baseline else arm.minus(baseline)
        if difference is None:
            cells += ["", "", "", "baseline" if arm is baseline else "no seed in common"]
        else:
            cells += _numbers([difference.mean], digits)
            cells += [_interval((difference.low, difference.high), digits), f"{difference.p:.3g}"]
            cells.append(_verdict(difference))
        rows.append(cells)
    return Table(header, rows, numeric=frozenset(range(1, 8)))


def remarks(arms: Sequence[Arm], baseline: Arm, names: Iterable[str]) -> list[str]:
    """What a reader of the table must know: seeds that are too few, runs and arms that are missing."""
    sentences = []
    compared = {d.count for arm in arms if arm is not baseline and (d := arm.minus(baseline))}
    fewest = statistics.seeds_needed()
    for count in sorted(count for count in compared if count < fewest):
        sentences.append(
            f"With {_seeds(count)} the sign-flip test cannot give less than p = "
            f"{statistics.smallest_p(count):.3g}, so no difference can be shown; it takes {fewest} seeds."
        )
    few = sorted({len(arm.values) for arm in arms if len(arm.values) in (2, 3)})
    for count in few:
        share = 100 * (1 - statistics.smallest_p(count))
        sentences.append(
            f"The bootstrap interval of {_seeds(count)} is their range, which holds the mean about "
            f"{share:.0f} times in 100, not 95."
        )
    sentences += [
        f"Not finished, or without this figure: {', '.join(f'{arm.name}-{seed}' for seed in arm.missing)}."
        for arm in arms
        if arm.missing
    ]
    absent = [name for name in names if name not in {arm.name for arm in arms}]
    if absent:
        sentences.append(f"Arms not finished, or without this figure: {', '.join(absent)}.")
    return sentences


def _decimals(deviations: Sequence[float]) -> int:
    """Decimals that show two digits of the smallest spread, 4 where there is none, at most 6."""
    spreads = [spread for spread in deviations if spread > 0 and math.isfinite(spread)]
    return min(6, max(0, 1 - math.floor(math.log10(min(spreads))))) if spreads else 4


def _numbers(values: Sequence[float], digits: int) -> list[str]:
    return ["" if math.isnan(value) else f"{value:.{digits}f}" for value in values]


def _interval(interval: tuple[float, float], digits: int) -> str:
    return "" if math.isnan(interval[0]) else "{} to {}".format(*_numbers(interval, digits))


def _verdict(difference: statistics.Difference) -> str:
    if not difference.significant:
        return "no significant difference"
    return "higher" if difference.mean > 0 else "lower"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
