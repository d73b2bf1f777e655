"""Run folders: `runs/<name>/{config.json, environment.txt, done.json, ...}`."""

import datetime
import json
import os
import re
import shlex
import sys
import typing
from collections.abc import Iterable
from pathlib import Path

import jax

from gptjax.config import ConfigError, difference, flatten, to_json
from gptjax.environment import describe_environment
from gptjax.sharding.distributed import wait_for_all
from gptjax.training.events import SETTINGS_CHANGED, EventLog
from gptjax.training.integrity import file_hash

# Where a run is computed, in how many parts, how often it is saved: but for rounding and for dropout's draws
# nothing depends on these, so a later start may have others.
_LAYOUT = re.compile(
    r"(?P<stage>(\w+\.)*)(?P<key>mesh\.(stage|data|fsdp|sequence|tensor)|accumulate|save_every) was .*"
)


class RunFolderRefused(ConfigError):
    """The run folder belongs to another run or cannot be made: nothing was started."""


def open_run(folder: str | Path, config: typing.Any, *, may_change: Iterable[str] = ()) -> Path:
    """Creates the folder of a run, or opens it again to resume.

    Writes the resolved configuration to `config.json` and package versions, git revision and command line to
    `environment.txt`; each resume adds its own block to the latter. The mesh, `accumulate` and `save_every`
    may differ from those of an earlier start; what differs is said, and noted in `events.jsonl`. A finished
    run keeps those that it had.

    Args:
      folder: where the run lives.
      config: the configclass of the run.
      may_change: further dotted keys, or groups of keys, that may differ from the stored configuration.

    Raises:
      RunFolderRefused: the folder holds a run with another configuration, or something that is not a run, or
        cannot be made.
    """
    folder, stored, wanted = Path(folder), Path(folder) / "config.json", to_json(config)
    changes, layout = check_same(folder, config, may_change)
    if folder.exists() and not folder.is_dir():
        raise RunFolderRefused(f"{folder} is not a folder: choose another --name")
    wait_for_all(f"{folder} is looked at")  # before one of us writes what the others compare with
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderRefused(
            f"the run folder {folder} cannot be made ({error.strerror}): choose another --runs or --name"
        ) from error
    if not (stage_done(folder) and changes == layout):
        write_json_atomic(stored, wanted)
        if changes:
            EventLog(folder).add(SETTINGS_CHANGED, changes=changes, config=file_hash(stored))
            print(f"{folder} goes on with other settings: {'; '.join(changes)}", flush=True)
    if jax.process_index() == 0:
        with (folder / "environment.txt").open("a", encoding="utf-8") as file:
            file.write(_environment_block())
    return folder


def check_same(
    folder: Path, config: typing.Any, may_change: Iterable[str] = ()
) -> tuple[list[str], list[str]]:
    """What differs from the configuration that the folder holds, and what of that is where it is computed.

    Raises:
      RunFolderRefused: something differs that may not.
    """
    stored, wanted = folder / "config.json", to_json(config)
    if not stored.exists():
        return [], []
    changes = difference(json.loads(stored.read_text("utf-8")), config)
    layout = [change for change in changes if _is_layout(change, wanted)]
    refused = [
        change
        for change in changes
        if change not in layout
        and not any(change.startswith((f"{key} was ", f"{key}.")) for key in may_change)
    ]
    if refused:
        raise RunFolderRefused(
            f"{folder} holds a run with another configuration ({'; '.join(refused)}): "
            f"choose another --name, or delete {folder} to start over"
        )
    return changes, layout


def take_back(folder: Path) -> None:
    """Frees the name of a run that failed before it did anything, as for a source that was mistyped."""
    begun = {path.name for path in folder.glob("*")} - {"config.json", "environment.txt"}
    if not begun and jax.process_index() == 0:
        (folder / "config.json").unlink(missing_ok=True)


def _is_layout(change: str, wanted: dict) -> bool:
    """Whether a sentence of `difference` is of a key that changes no number."""
    found = _LAYOUT.fullmatch(change)
    if not found:
        return False
    settings, stage = flatten(wanted), found["stage"]
    if found["key"] == "accumulate":  # PPO may average over each micro-batch; their number counts then
        return settings.get(f"{stage}conventions.average_over") != "micro_batch"
    # A translator is the average of its last checkpoints.
    return found["key"] != "save_every" or settings.get(f"{stage}average", 1) == 1


def stage_done(folder: str | Path) -> bool:
    """Says whether the stage in this folder ran to its end."""
    return (Path(folder) / "done.json").exists()


def mark_done(folder: str | Path, summary: dict) -> None:
    """Writes the summary of a finished stage (`seconds`, `tokens`, final figures) to `done.json`."""
    write_json_atomic(Path(folder) / "done.json", summary)


def read_done(folder: str | Path) -> dict:
    """The summary that `mark_done` wrote.

    Raises:
      ConfigError: the stage has not finished.
    """
    path = Path(folder) / "done.json"
    if not path.exists():
        raise ConfigError(f"the stage in {folder} has not finished: run its command again to resume it")
    return json.loads(path.read_text("utf-8"))


def write_json_atomic(path: str | Path, value: typing.Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one whole, also after a kill.

    Every process calls it; the first one writes, and the file is there for all when it returns.
    """
    _write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl_atomic(path: str | Path, rows: Iterable[typing.Any]) -> None:
    """Writes one line of JSON a row, as `write_json_atomic` does."""
    _write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_atomic(path: str | Path, text: str) -> None:
    path = Path(path)
    if jax.process_index() == 0:
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    wait_for_all(f"{path} is written")


def _environment_block() -> str:
    # The command line is written, the environment variables are not: they may hold secrets.
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    facts = {"command": shlex.join(sys.argv), "date": now, **describe_environment()}
    lines = [f"{key}: {value}" for key, value in facts.items() if key != "packages"]
    lines += [f"{name}=={version}" for name, version in facts["packages"].items()]
    return "\n".join(lines) + "\n\n"
