"""Where the wall time went: every second has one cause, also those in which nothing ran."""

import json

import pytest

from gptjax.training.events import EventLog, read_events
from gptjax.training.goodput import CAUSES, TRAINING, Goodput, earlier_seconds


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_every_second_has_one_cause():
    clock = Clock()
    time = Goodput({"down": 10.0}, 95.0, clock)  # five seconds ago the stage began to read its data
    clock.now += 3
    time.step()  # the first step, with its compilation
    for _ in range(4):
        clock.now += 2
        time.step()
    clock.now += 1
    with time.during("evaluating"):
        clock.now += 4
    with time.during("saving"):
        clock.now += 0.5
    clock.now += 2
    time.step(lost="skipped")
    record = time.record()
    assert record.pop("goodput") == pytest.approx(9 / 33.5, abs=1e-4)
    expected = {"starting": 8, TRAINING: 9, "evaluating": 4, "saving": 0.5, "skipped": 2, "down": 10}
    assert record == dict.fromkeys((TRAINING, *CAUSES), 0.0) | expected


def test_what_comes_before_the_first_step_is_starting():
    clock = Clock()
    time = Goodput({}, 100.0, clock)
    clock.now += 2
    with time.during("evaluating"):
        clock.now += 1
    assert time.seconds["starting"] == 2 and time.seconds["evaluating"] == 1 and time.seconds[TRAINING] == 0


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def test_a_start_after_a_kill_counts_what_was_lost(tmp_path):
    """Saved at 1010 with step 4, alive until 1016, started again at 1050."""
    seconds = dict.fromkeys((TRAINING, *CAUSES), 0.0) | {TRAINING: 6.0, "starting": 4.0}
    events = [
        {"time": 1004.0, "event": "start", "began": 1000.0, "step": 0},
        {"time": 1010.0, "event": "saved", "step": 4, "seconds": seconds, "goodput": 0.6},
        {"time": 1015.0, "event": "saved", "step": 8, "seconds": seconds, "goodput": 0.6},  # never finished
    ]
    write_lines(tmp_path / "events.jsonl", events)
    write_lines(tmp_path / "metrics.jsonl", [{"step": 9, "time": 1016.0}, {"step": 10, "time": 2000.0}])
    found = earlier_seconds(tmp_path, 4, 1050.0)
    assert found == seconds | {"redone": 6.0, "down": 34.0}
    assert sum(found.values()) == 50.0
    # Killed before the first checkpoint: all since the first start is lost.
    assert earlier_seconds(tmp_path, 0, 1050.0) == {"redone": 16.0, "down": 34.0}
    # A clock that was set back.
    assert earlier_seconds(tmp_path, 4, 900.0) == seconds
    assert earlier_seconds(tmp_path / "new", 0, 1050.0) == {}


def test_a_line_that_was_cut_short_spoils_no_other(tmp_path):
    log = EventLog(tmp_path)
    log.add("start", step=0)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"time": 12, "eve')
    EventLog(tmp_path).add("start", step=3)
    assert [(event["event"], event["step"]) for event in read_events(tmp_path)] == [
        ("start", 0),
        ("start", 3),
    ]
