"""What happened to a run besides its steps, over all its starts: one line of `events.jsonl` each."""

import json
import time
from pathlib import Path

import jax

FILE = "events.jsonl"
SETTINGS_CHANGED = "settings changed"


class EventLog:
    """Appends lines `{"time" (seconds since 1970), "event", fact: value, ...}`; only process 0 writes."""

    def __init__(self, folder: Path):
        self._path = Path(folder) / FILE
        if not jax.process_index() and self._path.exists():
            text = self._path.read_text("utf-8")
            if not text.endswith("\n"):  # a kill cut the last line short
                self._path.write_text(text[: text.rfind("\n") + 1], "utf-8")

    def add(self, event: str, **facts) -> None:
        """Appends one event."""
        if jax.process_index():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts}) + "\n"
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)


def read_events(folder: Path) -> list[dict]:
    """The events of a run folder, oldest first; a line cut short by a kill is left out."""
    path, events = Path(folder) / FILE, []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events
