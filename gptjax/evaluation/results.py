"""What a run folder holds, read back for the report."""

import dataclasses
import json
from pathlib import Path

from gptjax.config import ConfigError
from gptjax.training.events import read_events
from gptjax.training.metrics import read_metrics

# The order of the road; other stages follow by name.
_STAGES = ("pretrain", "finetune", "reward", "ppo", "ppo_without_ptx")


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Attributes:
      folder: the run folder.
      results: `results.json`; empty for a run of one stage.
      metrics: stage -> rows of its `metrics.jsonl`.
      done: stage -> its summary; a stage that has not finished is absent.
      replies: stage -> rows of its `samples.jsonl`, of stages whose replies were scored.
      environment: facts of the latest start, from `environment.txt`.
      time: stage -> the last record of where its time went, from `events.jsonl`.
      starts: stage -> how often it was started.
    """

    folder: Path
    results: dict
    metrics: dict[str, list[dict]]
    done: dict[str, dict]
    replies: dict[str, list[dict]]
    environment: dict[str, str]
    time: dict[str, dict]
    starts: dict[str, int]


def read_run(folder: Path) -> Run:
    """Reads a run folder: the whole road, or a single stage.

    Raises:
      ConfigError: the folder holds no run.
    """
    if not (folder / "config.json").exists():
        raise ConfigError(f"there is no run in {folder}: name a folder that gptjax train has made")
    stages = {path.parent.name: path.parent for path in folder.glob("*/metrics.jsonl")}
    if (folder / "metrics.jsonl").exists():
        stages[folder.resolve().name] = folder
    order = [name for name in _STAGES if name in stages] + sorted(set(stages) - set(_STAGES))
    done = {name: stages[name] / "done.json" for name in order}
    events = {name: read_events(stages[name]) for name in order}
    results = folder / "results.json"
    return Run(
        folder=folder,
        results=_read_json(results) if results.exists() else {},
        metrics={name: read_metrics(stages[name] / "metrics.jsonl") for name in order},
        done={name: _read_json(path) for name, path in done.items() if path.exists()},
        replies={name: rows for name in order if (rows := _scored_replies(stages[name] / "samples.jsonl"))},
        environment=_latest_environment(folder / "environment.txt"),
        time={name: saved[-1] for name in order if (saved := _of_kind(events[name], "saved"))},
        starts={name: len(_of_kind(events[name], "start")) for name in order},
    )


def _of_kind(events: list[dict], kind: str) -> list[dict]:
    return [event for event in events if event["event"] == kind]


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def _scored_replies(path: Path) -> list[dict]:
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [row for row in rows if "policy_reward" in row]


def _latest_environment(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    block = path.read_text("utf-8").strip().split("\n\n")[-1]
    facts = {}
    for line in block.splitlines():
        key, separator, value = line.partition(": " if ": " in line else "==")
        if separator:
            facts[key] = value
    return facts
