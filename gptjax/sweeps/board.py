"""What a sweep shows while it runs: a line for every running cell, taken from the end of its log."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from gptjax.sweeps.plan import Cell


class Board:
    """Live lines on a terminal, plain ones now and then elsewhere.

    Args:
        stream: where to print.
        every: seconds between two plain lines on a cell.
        clock: seconds.
    """

    def __init__(self, stream: TextIO, every: float, clock: Callable[[], float] = time.monotonic):
        self.stream, self.every, self.clock = stream, every, clock
        self._live = None
        self._shown = clock()

    def __enter__(self):
        if self.stream.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self.stream), refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_):
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, sentence: str) -> None:
        """Prints a line that stays."""
        if self._live is not None:
            self._live.console.print(sentence, markup=False, highlight=False)
        else:
            print(sentence, file=self.stream, flush=True)

    def show(self, cells: Sequence[Cell]) -> None:
        """Shows how far these cells are."""
        lines = [f"  {cell.name}: {last_line(cell.log)}" for cell in cells]
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"))
        elif self.clock() - self._shown >= self.every:
            self._shown = self.clock()
            for line in lines:
                self.say(line)


def last_line(log: Path) -> str:
    """The last line of a log that says something; "" where there is none."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - 4096))
        lines = file.read().decode("utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
