"""The arms of an ablation and what their runs found."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptjax.config import ConfigError, flatten, nearest
from gptjax.evaluation import statistics
from gptjax.sweeps.plan import load_sweep, plan


@dataclass(frozen=True)
class Arm:
    """One figure of an arm.

    Attributes:
        name: the arm.
        values: seed -> the figure.
        missing: the seeds whose runs are not finished or do not have it.
    """

    name: str
    values: Mapping[int, float]
    missing: tuple[int, ...] = ()

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return sum(self.values.values()) / len(self.values)

    @property
    def deviation(self) -> float:
        """Sample standard deviation over seeds; nan for one."""
        if len(self.values) < 2:
            return math.nan
        squares = sum((value - self.mean) ** 2 for value in self.values.values())
        return math.sqrt(squares / (len(self.values) - 1))

    @property
    def interval(self) -> tuple[float, float]:
        """Bootstrap interval of the mean."""
        return statistics.bootstrap_interval(list(self.values.values()))

    def minus(self, baseline: "Arm") -> statistics.Difference | None:
        """The paired difference over the seeds that both have; None without one."""
        shared = [seed for seed in self.values if seed in baseline.values]
        if not shared:
            return None
        return statistics.paired_difference(
            [self.values[seed] for seed in shared], [baseline.values[seed] for seed in shared]
        )


def read_arms(targets: Sequence[str | Path], runs: Path) -> tuple[dict[str, dict[int, Path]], str]:
    """Arm -> seed -> run folder, and the name of the baseline.

    Args:
        targets: sweep files, or run folders: `runs/bert/sentiment-0` is seed 0 of the arm `bert/sentiment`.
        runs: the folder of all runs, for sweeps.

    Raises:
        ConfigError: a folder holds no run, or two runs are the same seed of an arm.
    """
    arms: dict[str, dict[int, Path]] = {}
    baseline = ""
    for target in map(Path, targets):
        if target.suffix == ".py":
            config = load_sweep(target)
            baseline = baseline or config.baseline
            found = {(cell.arm, cell.seed): cell.folder for cell in plan(config, target, runs)}
            found = {(arm, seed): found[arm, seed] for arm in config.arms for seed in config.seeds}
        else:
            found = {_arm_and_seed(target, runs): target}
        for (arm, seed), folder in found.items():
            other = arms.setdefault(arm, {}).setdefault(seed, folder)
            if other.absolute() != folder.absolute():
                raise ConfigError(f"{other} and {folder} are both seed {seed} of '{arm}': name one of them")
    return arms, baseline


def measure(arms: Mapping[str, Mapping[int, Path]], metric: str) -> list[Arm]:
    """A figure of every arm that has it.

    Args:
        arms: from `read_arms`.
        metric: a dotted key of `done.json`, such as "heldout.accuracy"; of a road, the stage before it, such
            as "reward.heldout.accuracy", or the name of a figure of its table. `{seed}` stands for the seed.

    Raises:
        ConfigError: no run is finished, or none has the figure.
    """
    measured, known = [], set()
    for name, folders in arms.items():
        found = {seed: figures(folder) for seed, folder in folders.items()}
        known |= {key for values in found.values() if values for key in values}
        values = {seed: row[key] for seed, row in found.items() if row and (key := _key(metric, seed)) in row}
        if values:
            measured.append(Arm(name, values, tuple(seed for seed in folders if seed not in values)))
    if not known:
        raise ConfigError("none of these runs is finished: run their commands, or the sweep, again")
    if not measured:
        raise ConfigError(f"no run has the figure '{metric}': the nearest is '{nearest(metric, known)}'")
    return measured


def figures(folder: Path) -> dict[str, float]:
    """Every number but nan that a finished run found, by its dotted key; empty before it is finished."""
    if not (folder / "done.json").exists():
        return {}
    found = {stage.parent.name: _read(stage) for stage in sorted(folder.glob("*/done.json"))}
    found |= _read(folder / "done.json")
    results = folder / "results.json"
    if results.exists():
        found |= {figure["name"]: figure["value"] for figure in _read(results)["figures"]}
    flat = {key: value for key, value in flatten(found).items() if isinstance(value, int | float)}
    return {key: float(value) for key, value in flat.items() if not math.isnan(value)}


def choose_baseline(arms: Sequence[Arm], wanted: str, metric: str) -> Arm:
    """The arm of that name; the first for "".

    Raises:
        ConfigError: there is no such arm among those that have the figure `metric`.
    """
    found = [arm for arm in arms if wanted in ("", arm.name)]
    if not found:
        closest = nearest(wanted, [arm.name for arm in arms])
        raise ConfigError(
            f"the baseline '{wanted}' does not have the figure '{metric}', or is no arm: choose another, as "
            f"in --baseline {closest}"
        )
    return found[0]


def _arm_and_seed(folder: Path, runs: Path) -> tuple[str, int]:
    stored = folder / "config.json"
    if not stored.exists():
        raise ConfigError(
            f"there is no run in {folder}: name a sweep file, or folders that gptjax train has made"
        )
    absolute, root = folder.absolute(), runs.absolute()
    name = str(absolute.relative_to(root)) if absolute.is_relative_to(root) else absolute.name
    match = re.fullmatch(r"(.+)-(\d+)", name)
    seed = _read(stored).get("seed", int(match[2]) if match else 0)
    return (match[1] if match else name), seed


def _key(metric: str, seed: int) -> str:
    return metric.replace("{seed}", str(seed))


def _read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))
