"""Where the wall time of a run went, over all its starts.

    goodput = seconds of the steps that the run keeps / seconds since the first start

Every second has one cause. What an earlier start did is taken from the record that was logged with the
checkpoint this one goes on from: of the time after it, what the earlier start still worked was done again,
and for the rest nothing ran.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gptjax.training.events import read_events
from gptjax.training.metrics import read_metrics

TRAINING = "training"
# Cause of a lost second -> what it means.
CAUSES = {
    "starting": "reading data, restoring and compiling, until the first step is finished",
    "saving": "the loop waited for a checkpoint to be taken",
    "evaluating": "measurements on held-out data during training",
    "skipped": "steps with an update that was left out",
    "redone": "work after the last checkpoint, done again after a kill",
    "down": "nothing ran between two starts",
}


class Goodput:
    """A stopwatch that always runs for one cause.

    Args:
        earlier: seconds by cause at the checkpoint this start goes on from.
        began: `time.monotonic()` when this start began.
        clock: of seconds.
    """

    def __init__(self, earlier: dict[str, float], began: float, clock: Callable = time.monotonic):
        self.seconds = dict.fromkeys((TRAINING, *CAUSES), 0.0) | earlier
        self._mark, self._clock, self._usual = began, clock, "starting"

    def spend(self, cause: str) -> None:
        """The time since the last call was of this cause."""
        now = self._clock()
        self.seconds[cause] += now - self._mark
        self._mark = now

    def step(self, lost: str = "") -> None:
        """A step is finished: the time since the last call was training, or lost for a cause.

        Until the first is finished, it was starting.
        """
        self.spend(self._usual if self._usual == "starting" else lost or TRAINING)
        self._usual = TRAINING

    @contextmanager
    def during(self, cause: str) -> Iterator[None]:
        """The time inside is of this cause, that before it of the usual one."""
        self.spend(self._usual)
        yield
        self.spend(cause)

    def record(self) -> dict[str, float]:
        """Seconds by cause, rounded, and the share that was training."""
        whole = sum(self.seconds.values())
        share = self.seconds[TRAINING] / whole if whole > 0 else 0.0
        return {cause: round(value, 3) for cause, value in self.seconds.items()} | {
            "goodput": round(share, 4)
        }


def earlier_seconds(folder: Path, step: int, began: float) -> dict[str, float]:
    """Seconds by cause before a start that began at `began` (since 1970) goes on from `step`.

    Reads `events.jsonl` and `metrics.jsonl` of the run as an earlier start left them. A clock that was set
    back makes no time negative.
    """
    events, file = read_events(folder), folder / "metrics.jsonl"
    starts = [event for event in events if event["event"] == "start"]
    if not starts:
        return {}
    saved = [event for event in events if event["event"] == "saved" and event["step"] == step]
    record = saved[-1] if step and saved else {"time": starts[0]["began"]}
    rows = read_metrics(file) if file.exists() else []
    alive = max([record["time"], *(row["time"] for row in (*events, *rows) if row["time"] <= began)])
    seconds = (
        {cause: record["seconds"][cause] for cause in (TRAINING, *CAUSES)} if "seconds" in record else {}
    )
    for cause, start, end in (("redone", record["time"], alive), ("down", alive, began)):
        seconds[cause] = seconds.get(cause, 0.0) + max(0.0, end - start)
    return seconds
