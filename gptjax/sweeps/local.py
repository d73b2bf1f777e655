"""Runs the cells of a sweep as processes of this machine, each on its own cores."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from gptjax.errors import RESUBMIT
from gptjax.launching.environments import MEMORY
from gptjax.sweeps.board import Board, last_line
from gptjax.sweeps.plan import Cell

COMMAND = (sys.executable, "-m", "gptjax.cli")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Running:
    """A cell's process, which share of the cores it has, and when it began."""

    cell: Cell
    process: subprocess.Popen
    share: int
    began: float


def run_cells(
    cells: Sequence[Cell],
    jobs: int = 1,
    *,
    command: Sequence[str] = COMMAND,
    stream: TextIO | None = None,
    every: float = 30.0,
) -> int:
    """Runs what is not finished, `jobs` cells at a time, and says how it went.

    A cell begins when those it builds on are finished; what builds on a failed one is left out, the others
    go on. SIGTERM and Ctrl-C are passed on as SIGTERM, so that every cell saves; a second one makes them
    leave at once.

    Args:
        cells: from `plan`.
        jobs: processes at a time.
        command: what runs a cell; its words follow.
        stream: where to print; standard output without it.
        every: seconds between two lines on a running cell where the output is not a terminal.

    Returns:
        0 when every cell is finished, 75 when cells were told to stop, 1 when one failed.
    """
    shares = core_shares(jobs)
    ended = {cell.name: 0 for cell in cells if cell.finished}  # name -> exit code
    waiting = [cell for cell in cells if cell.name not in ended]
    running: list[Running] = []
    board = Board(stream or sys.stdout, every)
    board.say(f"{len(cells)} runs, {len(ended)} finished before; {jobs} at a time")
    passed_on = 0
    with Signals() as signals, board:
        try:
            while running or (waiting and not signals.count):
                for run in [run for run in running if run.process.poll() is not None]:
                    running.remove(run)
                    ended[run.cell.name] = run.process.returncode
                    board.say(_ended(run, f"{list(ended.values()).count(0)} of {len(cells)} finished"))
                if signals.count > passed_on:
                    passed_on = signals.count
                    board.say(f"told to stop: {len(running)} runs are told in turn")
                    for run in running:
                        run.process.send_signal(signal.SIGTERM)
                ready = [cell for cell in waiting if all(ended.get(name) == 0 for name in cell.needs)]
                if not signals.count:
                    free = [i for i in range(jobs) if i not in [run.share for run in running]]
                    for i, cell in zip(free, ready, strict=False):
                        waiting.remove(cell)
                        running.append(Running(cell, start(cell, shares[i], command), i, time.monotonic()))
                        board.say(f"began {cell.name}, see {cell.log}")
                if not running and not ready:
                    break  # what still waits builds on what failed
                board.show([run.cell for run in running])
                time.sleep(0.1)
        finally:
            for run in running:  # after an error of our own
                run.process.terminate()
    return summary(cells, ended, bool(signals.count), board.say)


def start(cell: Cell, cores: Sequence[int], command: Sequence[str]) -> subprocess.Popen:
    """Starts a cell on these cores; what it prints is added to its log."""
    cell.log.parent.mkdir(parents=True, exist_ok=True)
    threads = dict.fromkeys(THREADS, str(len(cores)))
    environment = MEMORY | os.environ | threads | {"PYTHONUNBUFFERED": "1"}
    with cell.log.open("ab") as log:
        process = subprocess.Popen(
            [*command, *cell.words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches us alone, and comes to the cell as SIGTERM
        )
    if hasattr(os, "sched_setaffinity"):  # XLA makes as many threads as there are cores to run on
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, cores)
    return process


def core_shares(jobs: int) -> list[list[int]]:
    """This process's cores in `jobs` equal shares of neighbours; with fewer cores than jobs, one each."""
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
    else:
        cores = list(range(os.cpu_count() or 1))
    count = len(cores)
    return [cores[count * i // jobs : count * (i + 1) // jobs] or [cores[i % count]] for i in range(jobs)]


def summary(cells: Sequence[Cell], ended: Mapping[str, int], stopped: bool, say: Callable) -> int:
    """Says which cells are not finished, and why; returns the exit code of the sweep."""
    failed = [cell for cell in cells if ended.get(cell.name, 0) not in (0, RESUBMIT)]
    saved = [cell for cell in cells if ended.get(cell.name) == RESUBMIT]
    left = [cell for cell in cells if cell.name not in ended]
    for cell in failed:
        say(f"failed: {cell.name} (exit code {ended[cell.name]}), see {cell.log}: {last_line(cell.log)}")
    for cell in saved:
        say(f"stopped: {cell.name}, the same command resumes it")
    for cell in left:
        missing = ", ".join(name for name in sorted(cell.needs) if ended.get(name) != 0)
        say(f"not begun: {cell.name}" + (f", which builds on {missing}" if missing else ""))
    say(f"{list(ended.values()).count(0)} of {len(cells)} runs are finished")
    if stopped or (saved and not failed):
        return RESUBMIT
    return 1 if failed else 0


def _ended(run: Running, count: str) -> str:
    code, seconds = run.process.returncode, time.monotonic() - run.began
    how = "finished" if code == 0 else "stopped" if code == RESUBMIT else f"failed with exit code {code}"
    return f"{how} {run.cell.name} after {seconds:.0f} s ({count})"


class Signals:
    """Counts SIGTERM and SIGINT while it is open."""

    def __init__(self):
        self.count = 0

    def __enter__(self):
        self._previous = {name: signal.signal(name, self._handle) for name in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for name, handler in self._previous.items():
            signal.signal(name, handler)

    def _handle(self, *_):
        self.count += 1
