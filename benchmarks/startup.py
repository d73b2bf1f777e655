"""How long gptjax takes to start: `gptjax --help`, the imports of training, the first step of two starts.

A start is a fresh process that imports, makes fresh parameters and does one step of model "a" of
`train_step.py`. The first start finds an empty folder of compiled programs, the second what the first left.

    python benchmarks/startup.py
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from functools import partial
from pathlib import Path

from gpt2_weights import Shape
from harness import Burst, Worker, interleave, measure
from results import NEEDED, bar, command_line, is_quiet, parse, publish, summarise
from train_step import BATCH_A, BATCH_TINY, MODEL_A, TINY, pretrain_batch, pretrain_step

HELP_BAR = 0.6
HELP, IMPORTS = "gptjax --help", "imports of training"
FIRST, SECOND = "first start", "second start"


def help_command() -> list[str]:
    """The console script of this Python, or its module where the package is not installed."""
    script = shutil.which("gptjax", path=Path(sys.executable).parent)
    return [script, "--help"] if script else [sys.executable, "-m", "gptjax.cli", "--help"]


def run_command(name: str, command: list[str]) -> Burst:
    """One run of a command, its output thrown away."""

    def work():
        before, begun = _children_seconds(), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begun
        return {"units": 1, "seconds": seconds, "cpu_seconds": _children_seconds() - before}

    return measure(name, work)


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def first_step(shape: Shape, batch: int, programs: str):
    """Runs in a fresh process: imports, fresh parameters, one step; (no further work, facts in seconds)."""
    clock, cpu = [time.perf_counter()], time.process_time()

    def lap():
        clock.append(time.perf_counter())
        return clock[-1] - clock[-2]

    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs
    import jax

    import gptjax.stages.pretrain  # noqa: F401 - its imports are what is timed
    from gptjax.environment import use_compilation_cache
    from gptjax.stages.sharded import create_state

    found = {"cache_hits": 0, "cache_misses": 0}

    def count(event, **_):
        kind = event.rpartition("/")[2]
        found[kind] = found.get(kind, 0) + 1

    jax.monitoring.register_event_listener(count)
    use_compilation_cache()
    facts = {"import_seconds": lap()}
    definition, optimizer, mesh, step = pretrain_step(shape, loop="unroll")
    key = jax.random.key(0)
    state = jax.block_until_ready(create_state(definition, optimizer, mesh, key=key))
    facts["state_seconds"] = lap()
    _, metrics = step(state, pretrain_batch(shape, batch, mesh), key)
    facts["loss"] = float(metrics["loss"])
    facts["step_seconds"] = lap()
    facts |= {"seconds": clock[-1] - clock[0], "cpu_seconds": time.process_time() - cpu}
    return None, facts | {name: found[name] for name in ("cache_hits", "cache_misses")}


def run_start(name: str, shape: Shape, batch: int, programs: str, threads, facts: dict) -> Burst:
    """One start in a fresh process; its parts are added to `facts[name]`."""
    if name == FIRST:
        shutil.rmtree(programs, ignore_errors=True)

    def work():
        worker = Worker(name, first_step, shape, batch, programs, threads=threads)
        worker.close()
        facts.setdefault(name, []).append(worker.facts)
        return {"units": 1} | {part: worker.facts[part] for part in ("seconds", "cpu_seconds")}

    return measure(name, work)


def row(name: str, figures: dict, facts: dict) -> dict:
    """One line of the table; the parts of a start are medians over all starts."""
    one, starts = figures[name], facts.get(name, [])

    def part(key):
        return statistics.median(start[key] for start in starts) if starts else None

    return {
        "what": name,
        "seconds": one.seconds_per_unit,
        "fastest": one.fastest,
        "slowest": one.slowest,
        "CPU s": one.cpu_seconds_per_unit,
        "imports s": part("import_seconds"),
        "parameters s": part("state_seconds"),
        "step s": part("step_seconds"),
        "programs found": part("cache_hits"),
        "programs compiled": part("cache_misses"),
        "kept": f"{one.kept} of {one.kept + one.dropped}",
    }


def options() -> ArgumentParser:
    """The command line."""
    return command_line(__doc__.splitlines()[0], bursts=5, limit=30)


def main() -> None:
    """Runs the benchmark."""
    chosen = parse(options())
    commands = {HELP: help_command(), IMPORTS: [sys.executable, "-c", "import gptjax.stages.pretrain"]}
    turns = [partial(run_command, name, command) for name, command in commands.items()]
    bursts = interleave(turns, chosen.bursts, chosen.limit)
    facts: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as folder:
        size = (TINY, BATCH_TINY) if chosen.quick else (MODEL_A, BATCH_A)
        more = (*size, f"{folder}/programs", chosen.threads, facts)
        starts = [partial(run_start, name, *more) for name in (FIRST, SECOND)]
        bursts += interleave(starts, min(chosen.bursts, NEEDED), chosen.limit)

    figures = summarise(bursts)
    rows = [row(name, figures, facts) for name in figures]
    lines, quiet = {one["what"]: one for one in rows}, is_quiet([figures[HELP]])
    seconds, step = "seconds" if quiet else "CPU s", lines[SECOND]["step s"] / lines[FIRST]["step s"]
    bars = [
        bar(f"{HELP}, {seconds}", lines[HELP][seconds], HELP_BAR, at_least=False),
        bar("programs the second start found", lines[SECOND]["programs found"], 1, at_least=True),
        bar("step of the second start / of the first", step, 1, at_least=False),
    ]
    publish("startup", chosen, bursts, rows, bars, facts=facts)


if __name__ == "__main__":
    main()
