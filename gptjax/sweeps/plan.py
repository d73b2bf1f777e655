"""A sweep: arms that differ in a line, each with several seeds, in the order in which they need each other.

A cell is one arm with one seed: one run, `RUNS/ARM-SEED`.
"""

import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from gptjax.config import ConfigError, configclass, difference, fields_of, load_experiment, nearest, to_json
from gptjax.overrides import override
from gptjax.ranges import Seed
from gptjax.runs import stage_done


@configclass
class SweepConfig:
    """Arms times seeds.

    Attributes:
        arms: name -> what `gptjax train` is given: the experiment file, unless it is `experiment`, and the
            differences as `--key value`. `{seed}` stands for the seed, `{runs}` for the folder of all runs.
            An arm that names the run folder of another builds on it.
        experiment: the experiment file of the arms that name none.
        seeds: every arm is run with each of them, as ARM-SEED.
        baseline: the arm that others are compared with; "" takes the first.
    """

    arms: Annotated[dict[str, str], Field(min_length=1)]
    experiment: str = ""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    baseline: str = ""

    def __post_init__(self):
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {self.seeds} names a seed twice: name each once")
        if self.baseline not in ("", *self.arms):
            closest = nearest(self.baseline, self.arms)
            raise ValueError(f"baseline = '{self.baseline}' is no arm: the nearest is '{closest}'")


@dataclass(frozen=True)
class Cell:
    """One arm with one seed.

    Attributes:
        arm, seed: which.
        runs: folder of all runs.
        experiment: its experiment file.
        overrides: the words that follow it, `--seed` among them.
        config: the resolved configuration.
        needs: names of the cells on whose run folders it builds.
    """

    arm: str
    seed: int
    runs: Path
    experiment: str
    overrides: tuple[str, ...]
    config: Any
    needs: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The run's name."""
        return f"{self.arm}-{self.seed}"

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.runs / self.name

    @property
    def log(self) -> Path:
        """What the run prints, beside its folder."""
        return self.runs / f"{self.name}.log"

    @property
    def words(self) -> list[str]:
        """What comes after `gptjax` on the command line."""
        elsewhere = [] if self.runs == Path("runs") else ["--runs", str(self.runs)]
        return ["train", self.experiment, "--name", self.name, *elsewhere, *self.overrides]

    @property
    def finished(self) -> bool:
        """Whether the run is done."""
        return stage_done(self.folder)


def load_sweep(file: str | Path) -> SweepConfig:
    """What `sweep()` of a sweep file returns.

    Raises:
      ConfigError: as `load_experiment`, or it returns something else.
    """
    config = load_experiment(file, "sweep")
    if not isinstance(config, SweepConfig):
        raise ConfigError(
            f"sweep() in {file} must return a SweepConfig, but returned {type(config).__name__}"
        )
    return config


def plan(config: SweepConfig, file: str | Path, runs: Path = Path("runs")) -> list[Cell]:
    """The cells of a sweep, seed by seed, each after those it builds on.

    Args:
        config: the sweep.
        file: its file, named in errors.
        runs: the folder of all runs.

    Raises:
        ConfigError: an arm's experiment or a key of it cannot be used, its seeds would be the same run, arms
            build on each other in a circle, or a run folder holds a run with another configuration.
    """
    cells = [_cell(config, name, seed, str(file), runs) for seed in config.seeds for name in config.arms]
    folders = {_absolute(cell.folder): cell.name for cell in cells}
    waiting = []
    for cell in cells:
        named = {_absolute(text) for text in _strings(cell.config)}
        needs = {name for folder, name in folders.items() if any(_within(path, folder) for path in named)}
        waiting.append(replace(cell, needs=frozenset(needs - {cell.name})))
        check_same(cell)
    ordered: list[Cell] = []
    while waiting:
        planned = {cell.name for cell in ordered}
        ready = next((cell for cell in waiting if cell.needs <= planned), None)
        if ready is None:
            circle = ", ".join(cell.name for cell in waiting)
            raise ConfigError(f"{file}: these runs build on each other in a circle: {circle}")
        waiting.remove(ready)
        ordered.append(ready)
    return ordered


def check_same(cell: Cell) -> None:
    """Refuses a run folder that holds another run.

    Raises:
      ConfigError: naming each difference.
    """
    stored = cell.folder / "config.json"
    if not stored.exists():
        return
    wanted, found = to_json(cell.config), json.loads(stored.read_text("utf-8"))
    if cell.finished:  # one that is not has to go on, by the names that it was given
        found = _placed_as(wanted, found, cell.runs)
    changes = difference(found, cell.config)
    if changes:
        raise ConfigError(
            f"{cell.folder} holds a run with another configuration ({'; '.join(changes)}): "
            f"rename the arm '{cell.arm}', or put {cell.folder} elsewhere to start over"
        )


def _placed_as(wanted: Any, stored: Any, runs: Path) -> Any:
    """`stored`, its folders of runs written as in `wanted`: those of runs that were moved are the same."""
    if isinstance(wanted, dict) and isinstance(stored, dict):
        return {key: _placed_as(wanted.get(key), value, runs) for key, value in stored.items()}
    if isinstance(wanted, list) and isinstance(stored, list) and len(wanted) == len(stored):
        return [_placed_as(*pair, runs) for pair in zip(wanted, stored, strict=True)]
    within = bool(wanted) and isinstance(wanted, str) and _within(_absolute(wanted), _absolute(runs))
    if within and isinstance(stored, str):
        below = Path(os.path.relpath(wanted, runs)).parts
        return wanted if Path(stored).parts[-len(below) :] == below else stored
    return stored


def _cell(config: SweepConfig, arm: str, seed: int, file: str, runs: Path) -> Cell:
    place = f"{file}, arm '{arm}'"
    line = config.arms[arm].replace("{seed}", str(seed)).replace("{runs}", str(runs))
    words = shlex.split(line)
    own = bool(words) and not words[0].startswith("--")
    experiment, overrides = (words[0], words[1:]) if own else (config.experiment, words)
    if not experiment:
        raise ConfigError(f"{place} has no experiment: begin its line with a file, or set experiment")
    base = load_experiment(experiment)
    sets_seed = any(word.split("=")[0] == "--seed" for word in overrides)
    if "seed" in fields_of(base) and not sets_seed:
        overrides = ["--seed", str(seed), *overrides]
    elif "{seed}" not in config.arms[arm] and len(config.seeds) > 1:
        raise ConfigError(f"{place} would be the same run for every seed: write {{seed}} where they differ")
    resolved = override(base, overrides, place)
    return Cell(arm, seed, runs, experiment, tuple(overrides), resolved)


def _strings(value: Any) -> Iterator[str]:
    """Every text in a configuration, keys of mappings among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from (key, *_strings(child))
    elif isinstance(value, tuple | list):
        for child in value:
            yield from _strings(child)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from _strings(getattr(value, name))


def _absolute(path: str | Path) -> str:
    return os.path.abspath(path)


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + os.sep)
