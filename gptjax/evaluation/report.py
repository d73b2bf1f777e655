"""The report of one or more runs: `report.md` and a self-contained `report.html`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gptjax.evaluation import charts
from gptjax.evaluation.alignment import alignment
from gptjax.evaluation.document import (
    Block,
    Heading,
    Paragraph,
    Picture,
    Table,
    text_table,
    write_html,
    write_markdown,
)
from gptjax.evaluation.figure_rows import figure_rows, number
from gptjax.evaluation.goodput import where_time_went
from gptjax.evaluation.results import Run, read_run
from gptjax.training.metrics import DIGEST

_TRANSCRIPTS = 10
_FAMILIES = ("loss", "bits_per_byte", "accuracy", "heldout")


def write_report(run_folders: Sequence[str | Path]) -> Path:
    """Writes `report.md`, `figures/` and `report.html` into the first folder; returns the path of the latter.

    With several runs the tables and curves show all of them; samples and transcripts are the first run's.

    Raises:
      ConfigError: a folder holds no run.
      MissingPackage: matplotlib is not installed.
    """
    runs = [read_run(Path(folder)) for folder in run_folders]
    first = runs[0]
    names = ", ".join(run.folder.resolve().name for run in runs)
    blocks = list(_blocks(runs))
    write_markdown(first.folder / "report.md", f"gptjax report: {names}", blocks)
    write_html(first.folder / "report.html", f"gptjax report: {names}", blocks)
    return first.folder / "report.html"


def result_table(results: Mapping) -> str:
    """The figures of `results.json` as a table for the terminal."""
    header, rows = figure_rows([results], ["value"])
    return text_table(header, rows, numeric=frozenset({1}))


def _blocks(runs: Sequence[Run]) -> Iterator[Block]:
    first, names = runs[0], _names(runs)
    yield from _what_was_run(runs, names)
    if any(run.results.get("figures") for run in runs):
        yield Heading("Results")
        header, rows = figure_rows([run.results for run in runs], ["value"] if len(runs) == 1 else names)
        yield Table(header, rows, numeric=frozenset(range(1, header.index("bar"))))
    yield from _curves(runs, names)
    yield from alignment(first)
    yield from _reward_model(first)
    lines = {
        name: run.results["reward_vs_kl"]
        for name, run in zip(names, runs, strict=True)
        if run.results.get("reward_vs_kl")
    }
    if lines:
        yield Heading("Reward against distance from the reference")
        yield Picture(
            "reward_vs_kl", charts.reward_against_kl(lines), "reward against the square root of the KL"
        )
    yield from _texts(first)
    yield from _cost(runs, names)
    yield from where_time_went(runs, names)
    yield from _files(runs)


def _reward_model(run: Run) -> Iterator[Block]:
    """Confidence and accuracy of the run's reward model, if it has one."""
    found = [done["heldout"] for done in run.done.values() if "accuracy_by" in done.get("heldout", {})]
    heldout = found[0] if found else {}
    bins = run.results.get("reliability") or heldout.get("reliability")
    if bins:
        yield Heading("Is the reward model's confidence right?")
        yield Paragraph(
            "Held-out pairs, grouped by confidence; the larger the point, the more pairs it stands for."
        )
        yield Picture(
            "reliability", charts.reliability(bins), "accuracy against confidence of the reward model"
        )
        rows = [_cells(entry, ("confidence", "accuracy", "count")) for entry in bins]
        yield Table(("confidence", "accuracy", "pairs"), rows, numeric=frozenset({0, 1, 2}))
    if heldout:
        yield Heading("Where is the reward model right?")
        rows = [
            [
                by,
                entry["value"] if "value" in entry else f"{number(entry['from'])} to {number(entry['to'])}",
                *_cells(entry, ("accuracy", "pairs")),
            ]
            for by, entries in heldout["accuracy_by"].items()
            for entry in entries
        ]
        yield Table(("held-out pairs by", "which", "accuracy", "pairs"), rows, numeric=frozenset({2, 3}))


def _what_was_run(runs: Sequence[Run], names: Sequence[str]) -> Iterator[Block]:
    yield Heading("What was run on what")
    facts = (
        "command",
        "date",
        "git",
        "backend",
        "devices",
        "cores",
        "memory_gib",
        "python",
        "jax",
        "flax",
        "optax",
    )
    present = [fact for fact in facts if any(fact in run.environment for run in runs)]
    rows = [[fact, *(run.environment.get(fact, "") for run in runs)] for fact in present]
    yield Table(("", *(names if len(runs) > 1 else ["this run"])), rows)


def _curves(runs: Sequence[Run], names: Sequence[str]) -> Iterator[Block]:
    """One picture a stage; a variant such as ppo_without_ptx is drawn into the pictures of its stage."""
    stages = list(dict.fromkeys(stage for run in runs for stage in run.metrics))
    base = {
        stage: next((other for other in stages if stage.startswith(f"{other}_")), stage) for stage in stages
    }
    for stage in dict.fromkeys(base.values()):
        panels: dict[str, dict[str, list]] = {}
        variants = [variant for variant in stages if base[variant] == stage]
        for name, run in zip(names, runs, strict=True):
            for variant in variants:
                labels = [name] * (len(runs) > 1) + [variant] * (len(variants) > 1)
                for metric, points in _series(run.metrics.get(variant, [])).items():
                    panel, line = _panel(metric) if len(variants) == 1 else (metric, "")
                    panels.setdefault(panel, {})[" ".join([*labels, line]).strip()] = points
        values = {
            panel: {y for points in lines.values() for _, y in points} for panel, lines in panels.items()
        }
        moving = sorted((panel for panel in panels if len(values[panel]) > 1), key=_importance)
        constant = [f"{panel} = {number(*values[panel])}" for panel in panels if len(values[panel]) == 1]
        if panels:
            yield Heading(f"Curves: {stage}")
        if moving:
            drawing = charts.curves({panel: panels[panel] for panel in moving})
            yield Picture(f"curves_{stage}", drawing, f"metrics of {stage} against the step")
        if constant:
            yield Paragraph(f"The same wherever it was logged: {', '.join(constant)}.")


def _importance(panel: str) -> tuple[bool, str]:
    return not panel.startswith(("loss", "accuracy", "objective/")), panel


def _series(rows: Sequence[Mapping]) -> dict[str, list[tuple[float, float]]]:
    series: dict[str, list] = {}
    for row in rows:
        for metric, value in row.items():
            hidden = metric in ("step", "stage", "time", "elapsed") or metric.startswith(DIGEST)
            if not hidden and math.isfinite(value):
                series.setdefault(metric, []).append((row["step"], value))
    return series


def _panel(metric: str) -> tuple[str, str]:
    """The panel of a metric and its line there: losses and accuracies per source share one."""
    head, _, tail = metric.rpartition("/")
    if head and any(family in head for family in _FAMILIES):
        return head, tail
    return metric, ""


def _texts(run: Run) -> Iterator[Block]:
    samples = run.results.get("samples", [])
    if samples:
        yield Heading("The same held-out prompts after each stage")
        stages = [key for key in samples[0] if key != "prompt"]
        rows = [[sample["prompt"], *(sample.get(stage, "") for stage in stages)] for sample in samples]
        yield Table(("prompt", *stages), rows)
    transcripts = run.results.get("transcripts", [])
    if transcripts:
        yield Heading("Questions in new wording")
        shown = transcripts[:: max(1, len(transcripts) // _TRANSCRIPTS)][:_TRANSCRIPTS]
        count = sum(entry["on_topic"] for entry in transcripts)
        yield Paragraph(
            f"{count} of {len(transcripts)} replies are on topic: they hold one of the keywords. "
            f"{len(shown)} of them, evenly spaced:"
        )
        rows = [
            [
                entry["question"],
                entry["reply"],
                ", ".join(entry["keywords"]),
                "yes" if entry["on_topic"] else "no",
            ]
            for entry in shown
        ]
        yield Table(("question", "reply", "keywords", "on topic"), rows)


def _cost(runs: Sequence[Run], names: Sequence[str]) -> Iterator[Block]:
    rows = []
    for name, run in zip(names, runs, strict=True):
        totals = {"seconds": 0.0, "tokens": 0.0}
        for stage in run.metrics:
            label = f"{name} {stage}" if len(runs) > 1 else stage
            if stage not in run.done:
                rows.append([label, "not finished", "", ""])
                continue
            cost = {key: float(run.done[stage].get(key) or 0) for key in totals}
            totals = {key: totals[key] + cost[key] for key in totals}
            rows.append([label, *_cost_cells(cost)])
        if len(run.done) > 1:
            rows.append([f"{name} in all" if len(runs) > 1 else "in all", *_cost_cells(totals)])
    if rows:
        yield Heading("What it cost")
        yield Table(("stage", "seconds", "tokens", "tokens/s"), rows, numeric=frozenset({1, 2, 3}))


def _cost_cells(cost: Mapping[str, float]) -> list[str]:
    seconds, tokens = cost["seconds"], cost["tokens"]
    return [
        f"{seconds:,.1f}",
        f"{tokens:,.0f}" if tokens else "",
        f"{tokens / seconds:,.0f}" if tokens and seconds else "",
    ]


def _files(runs: Sequence[Run]) -> Iterator[Block]:
    yield Heading("Where the files are")
    about = {
        "config.json": "the resolved configuration",
        "environment.txt": "versions, devices and command line of every start",
        "metrics.jsonl": "every metric of every logged step",
        "events.jsonl": "starts, saves, skipped steps, what was set aside, and where the time went",
        "done.json": "what the finished stage found and cost",
        "results.json": "the figures, samples and transcripts of this report",
        "tensorboard": "the curves for TensorBoard",
        "checkpoints": "everything needed to continue",
    }
    rows = [
        [str(name), about[name.name]]
        for run in runs
        for name in sorted([*run.folder.glob("*"), *run.folder.glob("*/*")])
        if name.name in about
    ]
    yield Table(("path", "what"), rows)


def _names(runs: Sequence[Run]) -> list[str]:
    return [run.folder.resolve().name for run in runs]


def _cells(entry: Mapping, keys: Sequence[str]) -> list[str]:
    return [number(entry[key]) for key in keys]
