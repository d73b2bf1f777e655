"""Runs of PPO that were measured along the way, read back."""

import json
from dataclasses import dataclass
from pathlib import Path

from gptjax.config import ConfigError, from_json
from gptjax.runs import read_done
from gptjax.stages.ppo import PpoConfig
from gptjax.stages.ppo_evaluation import DIVERGENCES
from gptjax.training.metrics import read_metrics

PREFIX = "tracked/"


@dataclass(frozen=True)
class Track:
    """What a tracked run measured.

    Attributes:
        config: of the run.
        start: figures of the policy that it began from.
        rows: figures at every measurement, with "step", in order.
    """

    config: PpoConfig
    start: dict[str, float]
    rows: list[dict[str, float]]


def read_track(folder: str | Path) -> Track:
    """The measurements of a finished, tracked run of PPO.

    Raises:
        ConfigError: it is no such run, or has not finished.
    """
    stored = Path(folder) / "config.json"
    config = from_json(json.loads(stored.read_text("utf-8"))) if stored.exists() else None
    if not isinstance(config, PpoConfig) or config.tracking is None or not config.tracking.replies:
        raise ConfigError(
            f"{folder} is no run of PPO whose replies were tracked: name one trained with tracking.replies"
        )
    start = read_done(folder)["heldout"]["reference"] | dict.fromkeys(DIVERGENCES, 0.0)
    rows = [
        {"step": row["step"]}
        | {name.removeprefix(PREFIX): row[name] for name in row if name.startswith(PREFIX)}
        for row in read_metrics(Path(folder) / "metrics.jsonl")
        if f"{PREFIX}kl" in row
    ]
    return Track(config, start, rows)
