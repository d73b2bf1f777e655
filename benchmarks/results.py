"""From bursts to medians, ratios and the files in `benchmarks/results`."""

import argparse
import importlib.metadata
import json
import os
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from harness import OTHERS_LIMIT, Burst

from gptjax.environment import git_revision, installed_packages

# Kept bursts of each implementation below which wall times decide nothing.
NEEDED = 3
FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Figures:
    """What the bursts of one implementation come to.

    Attributes:
        kept, dropped: bursts in which others left the machine alone, and the rest.
        seconds_per_unit: median wall time of the kept bursts, of all bursts if none was kept.
        fastest, slowest: the same bursts' extremes.
        cpu_seconds_per_unit: median CPU time of all bursts.
        peak_mib: the most memory the process held.
    """

    kept: int
    dropped: int
    seconds_per_unit: float
    fastest: float
    slowest: float
    cpu_seconds_per_unit: float
    peak_mib: float


def summarise(bursts: Iterable[Burst]) -> dict[str, Figures]:
    """Figures by implementation, in the order of their first bursts."""
    groups: dict[str, list[Burst]] = {}
    for burst in bursts:
        groups.setdefault(burst.name, []).append(burst)
    return {name: _figures(group) for name, group in groups.items()}


def _figures(bursts: list[Burst]) -> Figures:
    kept = [burst for burst in bursts if burst.kept]
    walls = [burst.seconds / burst.units for burst in kept or bursts]
    return Figures(
        kept=len(kept),
        dropped=len(bursts) - len(kept),
        seconds_per_unit=statistics.median(walls),
        fastest=min(walls),
        slowest=max(walls),
        cpu_seconds_per_unit=statistics.median(burst.cpu_seconds / burst.units for burst in bursts),
        peak_mib=max(burst.peak_mib for burst in bursts),
    )


def is_quiet(figures: Iterable[Figures], needed: int = NEEDED) -> bool:
    """Whether every implementation has enough kept bursts for its wall time to be quoted."""
    return all(one.kept >= needed for one in figures)


def ratio(peer: Figures, ours: Figures, quiet: bool) -> float:
    """How many times as fast as the peer: by wall time when the machine was quiet, else by CPU time."""
    if quiet:
        return peer.seconds_per_unit / ours.seconds_per_unit
    return peer.cpu_seconds_per_unit / ours.cpu_seconds_per_unit


def check_agreement(facts: dict[str, dict], what: str, tolerances: dict[str, float]) -> None:
    """Refuse to compare programs that compute different things.

    Args:
        facts: by implementation; each holds a list of numbers under `what`.
        what: name of the numbers that must agree with the first implementation's.
        tolerances: largest absolute gap by compute dtype: bfloat16 where a name says so, else float32.

    Raises:
        SystemExit: naming the implementations and the gap.
    """
    reference = next(iter(facts))
    for name, one in facts.items():
        limit = tolerances["bfloat16" if "bfloat16" in name + reference else "float32"]
        gaps = [abs(a - b) for a, b in zip(one[what], facts[reference][what], strict=True)]
        too_wide = [gap for gap in gaps if not gap <= limit]  # NaN is too wide as well
        if too_wide:
            raise SystemExit(
                f"error: the {what} of {name} and {reference} differ by {too_wide[0]:.2g}, over {limit}: "
                "they do not compute the same thing, so their times cannot be compared"
            )


def bar(figure: str, value: float | None, limit: float, *, at_least: bool) -> dict:
    """A figure beside its bar; `met` is None where there is no value."""
    met = None if value is None else value >= limit if at_least else value <= limit
    sign = "at least" if at_least else "at most"
    return {"figure": figure, "value": value, "bar": f"{sign} {limit}", "met": met}


def command_line(description: str, bursts: int, limit: int) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="one burst of a tiny model: does it run at all?")
    parser.add_argument(
        "--bursts", type=int, default=bursts, help=f"kept bursts wanted of each (default: {bursts})"
    )
    parser.add_argument(
        "--limit", type=float, default=limit, help=f"seconds after which no round begins (default: {limit})"
    )
    parser.add_argument("--threads", type=int, help="cores each process is pinned to (default: all)")
    parser.add_argument("--note", default="", help="a sentence for the result, such as what limits it")
    parser.add_argument(
        "--results", type=Path, help=f"where the files go (default: {FOLDER}; with --quick, nowhere)"
    )
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options; `--quick` asks for one burst of each and writes no files unless told where."""
    options = parser.parse_args()
    if options.quick:
        options.bursts, options.limit = 1, 0.0
    elif options.results is None:
        options.results = FOLDER
    return options


def installed(package: str, version: str = "") -> bool:
    """Whether a peer can be run, in this version if one is given; says so when it cannot."""
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found and version in ("", found):
        return True
    wanted = f"{package} {version}".strip()
    print(f"{wanted} is not installed, so there is no ratio to it: pip install 'gptjax[parity]'")
    return False


def describe_machine() -> dict:
    """The processor's name, the cores this process may use and the memory; never the host's name."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory, 1)}


def describe_run(options: argparse.Namespace) -> dict:
    """Date, machine, commit, versions and options of a benchmark's run."""
    peers = [name for name in ("torch", "transformers", "trl") if _version(name)]
    settings = {name: value for name, value in vars(options).items() if name not in ("results", "note")}
    return {
        "date": date.today().isoformat(),
        "machine": describe_machine(),
        "commit": git_revision(),
        "packages": installed_packages() | {name: _version(name) for name in peers},
        "settings": settings,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def verdict(figures: dict[str, Figures], quick: bool) -> str:
    """One sentence on how far the wall times can be trusted."""
    kept = ", ".join(f"{name} {one.kept} of {one.kept + one.dropped}" for name, one in figures.items())
    kept = f"Bursts kept (others used at most {OTHERS_LIMIT:.0%} of the CPU): {kept}."
    if quick:
        return f"quick: one burst of a tiny model, says nothing about speed. {kept}"
    if is_quiet(figures.values()):
        return f"Medians over the kept bursts. {kept}"
    return (
        "indicative: the machine was busy. Ratios are of CPU seconds, not of wall time; threads that spin "
        f"while they wait count as working, so an implementation whose threads spin looks slower. {kept}"
    )


def publish(benchmark: str, options, bursts: list[Burst], rows: list[dict], bars: list[dict], **more) -> None:
    """Prints the result and writes it as `<benchmark>-<date>.json` and `.md`.

    Args:
        benchmark: its name.
        options: from `parse`.
        bursts: all of them, dropped ones included.
        rows: one a table's line.
        bars: from `bar`; a quick run is not held against them.
        **more: further parts of the JSON file.
    """
    tables = {"Figures": rows} | ({} if options.quick else {"Bars": bars})
    status = verdict(summarise(bursts), options.quick)
    result = {"benchmark": benchmark, **describe_run(options), "status": status, "note": options.note}
    result |= {"tables": tables, **more, "bursts": [asdict(burst) | {"kept": burst.kept} for burst in bursts]}
    text = markdown(result)
    print(text)
    if options.results:
        options.results.mkdir(parents=True, exist_ok=True)
        stem = options.results / f"{benchmark}-{result['date']}"
        stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        stem.with_suffix(".md").write_text(text, "utf-8")
        print(f"written: {stem}.json and .md")


def markdown(result: dict) -> str:
    """The result as a page."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["packages"].items())
    settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
    lines = [
        f"# {result['benchmark']}, {result['date']}",
        "",
        f"- machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        f"- commit: {result['commit']}",
        f"- versions: {versions}",
        f"- settings: {settings}",
        "",
        result["status"],
        "",
    ]
    for heading, rows in result["tables"].items():
        lines += [f"## {heading}", "", *_table(rows), ""]
    return "\n".join(lines + ([result["note"], ""] if result["note"] else []))


def _table(rows: list[dict]) -> list[str]:
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([_cell(row[name]) for name in head] for row in rows)]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "met" if value else "missed"
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "-" if value is None else str(value)
