"""A stage that does as it is told, for the tests of the command line."""

import os
from pathlib import Path

from gptjax.config import ConfigError, configclass
from gptjax.data.quality import DataError
from gptjax.runs import mark_done, open_run
from gptjax.training.metrics import MetricsWriter


@configclass
class FakeConfig:
    """What the stage is to do.

    Attributes:
        steps: lines of metrics.
        end: how it ends.
    """

    steps: int = 2
    end: str = "well"


def run(config: FakeConfig, folder: Path) -> None:
    """Writes a few metrics, then ends as the configuration says."""
    folder = open_run(folder, config)
    if config.end == "data":
        raise DataError("texts.jsonl holds too many bad rows")
    if config.end == "settings":
        raise ConfigError("this cannot be")
    if config.end == "badly":
        raise ZeroDivisionError
    if config.end == "stopped":
        raise SystemExit(75)
    if config.end == "interrupted":
        raise KeyboardInterrupt
    writer = MetricsWriter(folder)
    for step in range(1, config.steps + 1):
        writer.write(step, {"loss": 1 / step}, "fake")
    writer.close()
    mark_done(folder, {"seconds": 2.0, "tokens": 100, "process": os.getpid()})
