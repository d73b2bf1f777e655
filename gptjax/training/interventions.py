"""A person's hand in a run: go back to an older checkpoint, leave batches out (Chowdhery et al. 2022, 5.1).

What was decided lies in `interventions.json` in the run folder, so every later start does the same.
"""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp

from gptjax.config import ConfigError
from gptjax.runs import write_json_atomic
from gptjax.sharding.distributed import wait_for_all
from gptjax.training.checkpoint import free_name
from gptjax.training.events import EventLog

FILE = "interventions.json"


def batches_left_out(folder: Path) -> set[int]:
    """The steps whose batches are not trained on."""
    return {step for first, end in _read(folder) for step in range(first, end)}


def pass_over(state):
    """`(state, metrics)` of a step whose batch is left out: only the number of the step changes."""
    return dataclasses.replace(state, step=state.step + 1), {"left_out": jnp.float32(1)}


def intervene(folder: Path, rewind_to: int | None, skip: str | None) -> None:
    """Notes batches to leave out and moves the checkpoints after a step out of the way.

    Args:
        folder: of a run that has been started and is not finished: of one stage, or of a road.
        rewind_to: go on from the newest checkpoint that is not after this step; 0 is the beginning. Later
            ones are moved to `checkpoints-rewound`.
        skip: "a:b" for the batches of the steps from a to b - 1, as numbered in `metrics.jsonl`.

    Raises:
        ConfigError: no such run or checkpoint, an empty range, or one that is trained on already.
    """
    folder = unfinished_stage(folder)
    saved = sorted(int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit())
    start = saved[-1] if saved else 0
    if rewind_to is not None:
        start = max((step for step in saved if step <= rewind_to), default=0)
        if not start and rewind_to:
            raise ConfigError(
                f"--rewind-to {rewind_to}: {folder} has no checkpoint of that step or before, but of "
                f"{saved or 'none'}: name one of these, or 0 to start from the beginning"
            )
    ranges = _read(folder)
    if skip is not None:
        first, end = _range(skip)
        if first <= start:
            raise ConfigError(
                f"--skip-batches {skip}: the run goes on from step {start} and knows batch {first}: go "
                f"back as well, with --rewind-to {first - 1} or less"
            )
        ranges.append((first, end))
    wait_for_all("interventions")  # everyone has looked before anything changes
    if skip is not None:
        write_json_atomic(folder / FILE, {"left_out": ranges})
        EventLog(folder).add("batches left out", first=first, last=end - 1)
        print(f"batches {first} to {end - 1} are left out in {folder}, in this start and all later ones")
    if rewind_to is not None:
        if jax.process_index() == 0:
            _move_away([step for step in saved if step > start], folder)
        wait_for_all("rewound")
        EventLog(folder).add("rewound", step=start)
        print(f"{folder} goes on from step {start}; later checkpoints lie in checkpoints-rewound")


def unfinished_stage(folder: Path) -> Path:
    """The folder itself, or the one of its stages, in rounds too, that has begun and is not finished."""
    begun = [path.parent for path in sorted(folder.glob("**/checkpoints"))]
    unfinished = [stage for stage in begun if not (stage / "done.json").exists()]
    if len(unfinished) != 1:
        names = ", ".join(str(stage.relative_to(folder)) for stage in unfinished)
        found = f"unfinished are {names}, so name one with --of" if unfinished else "there is none"
        raise ConfigError(
            f"--rewind-to and --skip-batches need one unfinished stage with checkpoints in {folder}: {found}"
        )
    return unfinished[0]


def _range(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+):(\d+)", text)
    first, end = map(int, found.groups()) if found else (0, 0)
    if not 0 < first < end:
        raise ConfigError(
            f"--skip-batches {text}: write a:b with 0 < a < b for the batches of the steps a to b - 1"
        )
    return first, end


def _read(folder: Path) -> list[tuple[int, int]]:
    file = folder / FILE
    return [tuple(pair) for pair in json.loads(file.read_text("utf-8"))["left_out"]] if file.exists() else []


def _move_away(steps: list[int], folder: Path) -> None:
    away = folder / "checkpoints-rewound"
    for step in steps:
        away.mkdir(exist_ok=True)
        (folder / "checkpoints" / str(step)).rename(free_name(away, step))
