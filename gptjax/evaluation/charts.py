"""Drawings for the report, as SVG text, and of comparisons, as files."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from gptjax.errors import require

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES = ("-", "--", ":")
Series = Sequence[tuple[float, float]]


def curves(panels: Mapping[str, Mapping[str, Series]], across: str = "step") -> str:
    """A grid of panels, three a row; each maps a label to its points, `across` and value.

    A label has the same colour and dashes in every panel, and one legend below explains them all.
    """
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    figure = _figure(3.6 * columns, 2.5 * rows + 0.3)
    shown = {}
    for i, (name, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        for label, points in lines.items():
            steps, values = zip(*points, strict=True)
            round_, colour = divmod(labels.index(label), len(_COLOURS))
            style = {"color": _COLOURS[colour], "linestyle": _DASHES[round_ % len(_DASHES)]}
            (shown[label],) = axes.plot(
                steps, values, linewidth=1.2, marker="." if len(steps) < 8 else "", **style
            )
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(across, fontsize=8)
        _plain(axes)
    named = {label: line for label, line in shown.items() if label}
    if named:
        figure.legend(
            named.values(), named, loc="outside lower center", ncols=columns, fontsize=8, frameon=False
        )
    return _svg(figure)


def reliability(bins: Sequence[Mapping[str, float]]) -> str:
    """Accuracy against confidence, a point a bin, its area the number of pairs in it."""
    figure = _figure(4.6, 4.2)
    axes = figure.add_subplot()
    filled = [entry for entry in bins if entry["count"]]
    most = max((entry["count"] for entry in filled), default=1)
    axes.plot([0, 1], [0, 1], color="#888", linewidth=1, linestyle="--", label="perfectly calibrated")
    axes.plot(
        [entry["confidence"] for entry in filled],
        [entry["accuracy"] for entry in filled],
        color=_COLOURS[0],
        linewidth=1.2,
        label="held-out pairs",
    )
    for entry in filled:
        size = 15 + 160 * entry["count"] / most
        axes.scatter(entry["confidence"], entry["accuracy"], s=size, color=_COLOURS[0], alpha=0.6)
    low = min([0.5, *(min(entry["confidence"], entry["accuracy"]) for entry in filled)])
    axes.set(xlim=(low - 0.03, 1.03), ylim=(low - 0.03, 1.03))
    axes.set_xlabel("confidence in the higher-scored text", fontsize=9)
    axes.set_ylabel("how often humans agree", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    _plain(axes)
    return _svg(figure)


def reward_against_kl(lines: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Reward against the square root of the KL divergence to the reference, a line a run."""
    figure = _figure(4.8, 3.6)
    axes = figure.add_subplot()
    for colour, (label, points) in zip(_COLOURS * len(lines), lines.items(), strict=False):
        # An estimate from samples can come out a little below 0.
        roots = [math.sqrt(max(point["kl"], 0.0)) for point in points]
        axes.plot(roots, [point["score"] for point in points], ".-", color=colour, linewidth=1, label=label)
    axes.set_xlabel("square root of the KL divergence to the reference (nats)", fontsize=9)
    axes.set_ylabel("reward", fontsize=9)
    if len(lines) > 1:
        axes.legend(fontsize=8, frameon=False)
    _plain(axes)
    return _svg(figure)


def score_against_length(points: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Score of each reply against its length, `(tokens, score)`; a colour a model."""
    figure = _figure(4.8, 3.6)
    axes = figure.add_subplot()
    for colour, (label, pairs) in zip(_COLOURS, points.items(), strict=False):
        lengths, scores = zip(*pairs, strict=True)
        axes.scatter(lengths, scores, s=14, color=colour, alpha=0.5, linewidths=0, label=label)
    axes.set_xlabel("tokens of the reply", fontsize=9)
    axes.set_ylabel("reward model's score", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    _plain(axes)
    return _svg(figure)


def write_comparison(
    path: Path, panels: Mapping[str, Mapping[str, tuple[Sequence[float], tuple[float, float]]]]
) -> None:
    """Writes a PNG or SVG file, by the path's ending: a panel a metric, a row an arm.

    Args:
        path: the file.
        panels: metric -> arm -> (the figure of every seed, the interval of their mean); the first is black.
    """
    figure = _figure(6.4, 0.3 + sum(0.9 + 0.36 * len(rows) for rows in panels.values()))
    grid = figure.subplots(
        len(panels), squeeze=False, height_ratios=[len(rows) + 1 for rows in panels.values()]
    )
    for axes, (metric, rows) in zip(grid[:, 0], panels.items(), strict=True):
        for place, (values, (low, high)) in enumerate(rows.values()):
            colour, mean = _COLOURS[0 if place else 6], sum(values) / len(values)
            if math.isfinite(low):
                axes.plot([low, high], [place, place], color=colour, linewidth=2)
            axes.plot(mean, place, "D", color=colour, markersize=6)
            axes.plot(values, [place + 0.22] * len(values), "o", color=colour, markersize=3.5, alpha=0.45)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(metric, fontsize=9)
        _plain(axes)
    legend = "diamond: mean; bar: its 95 % bootstrap interval; dots: seeds; black: the baseline"
    figure.supxlabel(legend, fontsize=8, color="#666")
    _write(figure, path)


def write_gold_curves(path: Path, panels: Mapping[str, Mapping[str, Mapping[str, Series]]]) -> None:
    """Writes a PNG or SVG file, by the path's ending: a panel an optimiser, a colour a proxy.

    Args:
        path: the file.
        panels: optimiser -> proxy -> "gold" (solid), "proxy" (dashed) and "fit" (dotted) -> points of
            sqrt(KL) and reward.
    """
    names = list(dict.fromkeys(name for proxies in panels.values() for name in proxies))
    figure, shown = _figure(4.6 * len(panels), 4.2), {}
    for place, (optimiser, proxies) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), place)
        for name, lines in proxies.items():
            colour = _COLOURS[names.index(name) % len(_COLOURS)]
            (shown[name],) = axes.plot(*zip(*lines["gold"], strict=True), ".-", color=colour, linewidth=1.4)
            axes.plot(*zip(*lines["proxy"], strict=True), "--", color=colour, linewidth=1)
            axes.plot(*zip(*lines["fit"], strict=True), ":", color=colour, linewidth=1)
        axes.axhline(0, color="#888", linewidth=0.6)
        axes.set_title(optimiser, fontsize=10)
        axes.set_xlabel("square root of the KL to the initial policy (nats)", fontsize=9)
        axes.set_ylabel("reward, standard deviations of gold", fontsize=9)
        _plain(axes)
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(
        "solid: gold; dashed: the proxy itself; dotted: the fit to gold", fontsize=8, color="#666"
    )
    _write(figure, path)


def _write(figure, path: Path) -> None:
    kind = path.suffix.lower().removeprefix(".")
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "svg":
        path.write_text(_svg(figure), "utf-8")
    else:
        figure.savefig(path, format=kind, dpi=200)


def _figure(width: float, height: float):
    require("matplotlib")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _plain(axes) -> None:
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _svg(figure) -> str:
    import matplotlib

    text = io.StringIO()
    # A fixed salt and no date: the same numbers give the same file.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "gptjax"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
