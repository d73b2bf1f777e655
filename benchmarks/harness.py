"""Interleaved timing of resident processes on a machine that may not be ours alone.

One process per implementation builds and warms up its program, then waits. The harness asks them in turn,
A B A B, for a burst of work, and notes how much of the machine's CPU other processes took meanwhile. A burst
in which they took more than `OTHERS_LIMIT` is dropped. `results.py` turns bursts into medians and ratios.
"""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

# Share of the machine's CPU that others may use in a burst that is kept.
OTHERS_LIMIT = 0.08


@dataclass(frozen=True)
class Burst:
    """One burst of one implementation.

    Attributes:
        name: the implementation.
        units: work done, in the benchmark's unit (tokens, starts).
        seconds: wall time.
        cpu_seconds: CPU time of all threads of the processes that worked.
        others: share of the machine's CPU time that went to processes outside this tree, 0 to 1.
        peak_mib: the most memory the process has held so far.
        phases: seconds of the parts of the work, where it tells them apart.
    """

    name: str
    units: float
    seconds: float
    cpu_seconds: float
    others: float
    peak_mib: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        """Whether the machine was quiet enough for the wall time to mean something."""
        return self.others <= OTHERS_LIMIT


def machine_ticks(stat: str) -> tuple[int, int]:
    """Clock ticks since boot, over all cores, from the text of `/proc/stat`: (busy, busy and idle).

    Time the hypervisor gave to other machines ("steal") is busy: it was taken from us all the same.
    """
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, stat.splitlines()[0].split()[1:9])
    busy = user + nice + system + irq + softirq + steal
    return busy, busy + idle + iowait


def tree_ticks(stats: Iterable[str], root: int) -> int:
    """Clock ticks used by a process, its living descendants and their reaped children.

    Args:
        stats: the texts of `/proc/*/stat`.
        root: process id of the tree's root.
    """
    parents, ticks = {}, {}
    for stat in stats:
        # The program's name stands in parentheses and may hold spaces and parentheses itself.
        process, fields = int(stat.split()[0]), stat.rpartition(") ")[2].split()
        parents[process], ticks[process] = int(fields[1]), sum(map(int, fields[11:15]))

    def belongs(process):
        while process != root and process in parents:
            process = parents[process]
        return process == root

    return sum(ticks[process] for process in ticks if belongs(process))


def others_share(before: tuple[int, int, int], after: tuple[int, int, int]) -> float:
    """Share of the machine's CPU time that others had between two readings (busy, total, own) of ticks."""
    busy, total, own = (b - a for a, b in zip(before, after, strict=True))
    return max(0.0, (busy - own) / total) if total else 0.0


def read_ticks() -> tuple[int, int, int]:
    """(busy, total, own) clock ticks now; own are those of this process's tree.

    Raises:
        SystemExit: the machine has no /proc, which Linux has.
    """
    if not Path("/proc/stat").exists():
        raise SystemExit("error: the benchmarks read /proc/stat, which only Linux has: run them there")
    stats = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            stats.append(file.read_text("utf-8", "replace"))
        except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
            continue
    return *machine_ticks(Path("/proc/stat").read_text("ascii")), tree_ticks(stats, os.getpid())


def measure(name: str, work: Callable[[], dict]) -> Burst:
    """Runs `work` and returns its burst; `work` returns units, seconds, cpu_seconds and maybe more."""
    before = read_ticks()
    figures = work()
    return Burst(name=name, others=others_share(before, read_ticks()), **figures)


class Worker:
    """A resident process that builds a program once and then works in bursts.

    Attributes:
        name: the implementation.
        facts: what the builder said about it: compile seconds, losses, the device.
    """

    def __init__(self, name: str, build: Callable, *arguments, threads: int | None = None):
        """Starts the process and waits until it is warm.

        Args:
            name: the implementation.
            build: runs in the new process, `build(*arguments) -> (work, facts)`; `work()` does a burst, waits
                for its end and returns the units done, maybe with the seconds of its phases. Importable by
                name.
            threads: pins the process to so many cores; None leaves it all of them.

        Raises:
            RuntimeError: the process failed, with its traceback.
        """
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, build, arguments, threads), daemon=True, name=name
        )
        self._process.start()
        theirs.close()
        self.facts: dict = self._answer()

    def burst(self) -> Burst:
        """One burst of work."""
        return measure(self.name, self._work)

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.terminate()

    def _work(self) -> dict:
        self._connection.send("burst")
        return self._answer()

    def _answer(self) -> dict:
        try:
            answer = self._connection.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            raise RuntimeError(f"{self.name} ended with exit code {code}; -9: out of memory?") from None
        if isinstance(answer, str):
            raise RuntimeError(f"{self.name} failed:\n{answer}")
        return answer


def start(builds: dict[str, Callable], threads: int | None) -> list[Worker]:
    """The processes by name, started one after the other so that each compiles while the others wait."""
    workers = []
    for name, build in builds.items():
        before = read_ticks()
        workers.append(Worker(name, build, threads=threads))
        workers[-1].facts["others_at_start"] = others_share(before, read_ticks())
        print(f"{name}: warm", flush=True)
    return workers


def _serve(connection, build, arguments, threads) -> None:
    if threads:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    try:
        work, facts = build(*arguments)
        connection.send(facts)
        while connection.recv() == "burst":
            wall, cpu = time.perf_counter(), time.process_time()
            done = work()
            units, phases = done if isinstance(done, tuple) else (done, {})
            figures = {"units": units, "phases": phases, "seconds": time.perf_counter() - wall}
            figures |= {"cpu_seconds": time.process_time() - cpu, "peak_mib": peak_memory_mib()}
            connection.send(figures)
    except EOFError:  # the harness closed its end
        return
    except Exception:
        connection.send(traceback.format_exc())


def peak_memory_mib() -> float:
    """The most resident memory this process has held."""
    status = Path("/proc/self/status").read_text("ascii", "replace")
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def interleave(turns: list[Callable[[], Burst]], wanted: int, limit: float) -> list[Burst]:
    """Rounds of one burst each, A B A B, until every turn has `wanted` kept bursts or the time is up.

    Args:
        turns: each runs one burst of one implementation.
        wanted: kept bursts of each.
        limit: seconds after which no new round begins; the first always runs.
    """
    bursts, begun = [], time.monotonic()
    while True:
        bursts += [turn() for turn in turns]
        kept = [sum(burst.kept for burst in bursts[index :: len(turns)]) for index in range(len(turns))]
        if min(kept) >= wanted or time.monotonic() - begun > limit:
            return bursts
