"""A thread that ends a run that hangs, and says where it hung."""

import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from gptjax.errors import RESUBMIT

# Steps, as multiples of their median, and anything else: compiling, reading, evaluating, saving.
STEPS = 10.0
ELSEWHERE = 1800.0
# How much later the process leaves that serves the others. They notice a hang within a second or so of it; a
# missing heartbeat is noticed after 10 s at the earliest.
LINGER = 5.0


def linger_of(process: int, processes: int) -> float:
    """The first of several processes serves the others, which JAX aborts when it leaves: it leaves last."""
    return LINGER if processes > 1 and process == 0 else 0.0


class Watchdog:
    """Ends the process with exit code 75 when no step finishes for `max(10 medians, at_least)` seconds.

    Before the first step, in `patience()` and while a program is compiled the limit is half an hour. The
    stacks of all threads go to `stacks-<process>.txt` in the run folder and to standard error. A process that
    waits for another one that hangs is ended in the same way, so every host leaves its stacks.

    Args:
        folder: of the run.
        process: index of this process.
        at_least: seconds.
        elsewhere: the limit outside steps.
        linger: seconds between the stacks and the end; see `linger_of`.
        leave: called with the exit code.
    """

    def __init__(
        self,
        folder: Path,
        process: int = 0,
        at_least: float = 120.0,
        elsewhere: float = ELSEWHERE,
        linger: float = 0.0,
        leave: Callable[[int], object] = os._exit,
    ):
        self._file = Path(folder) / f"stacks-{process}.txt"
        self._linger = linger
        self._at_least, self._elsewhere, self._leave = at_least, elsewhere, leave
        self._steps, self._patient, self._beat = deque(maxlen=100), True, time.monotonic()
        self._over = threading.Event()
        self._main = threading.get_ident()

    def __enter__(self):
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def beat(self) -> None:
        """Says that a step has finished."""
        now = time.monotonic()
        if not self._patient:
            self._steps.append(now - self._beat)
        self._patient, self._beat = False, now

    @contextmanager
    def patience(self):
        """What is inside may take long, and is no step."""
        self._patient, self._beat = True, time.monotonic()
        yield
        self._beat = time.monotonic()

    def limit(self) -> float:
        """Seconds that may pass now without a beat."""
        if self._patient or not self._steps or self._compiling():
            return self._elsewhere
        return max(self._at_least, STEPS * statistics.median(self._steps))

    def _watch(self) -> None:
        while not self._over.wait(min(self._at_least / 10, 1.0)):
            waited = time.monotonic() - self._beat
            # A debugger's trace function says that a person holds the run.
            if waited > self.limit() and sys.gettrace() is None:
                self._end(waited)
                return

    def _end(self, waited: float) -> None:
        message = f"no step has finished for {waited:.0f} s: the run hangs and is ended; run again to resume"
        with self._file.open("a", encoding="utf-8") as file:
            print(time.strftime("%Y-%m-%d %H:%M:%S"), message, file=file, flush=True)
            faulthandler.dump_traceback(file)
        print(f"error: {message}; stacks are in {self._file}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.__stderr__)
        time.sleep(self._linger)
        self._leave(RESUBMIT)

    def _compiling(self) -> bool:
        frame = sys._current_frames().get(self._main)
        while frame is not None:
            if frame.f_code.co_filename.endswith("jax/_src/compiler.py"):
                return True
            frame = frame.f_back
        return False
