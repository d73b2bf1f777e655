"""A stage in a process of its own beside another one: two small models share two CPU cores well.

Neither fills them: where one waits the other works, and both end with the bits they end with alone.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path

import jax

from gptjax.environment import usable_cores
from gptjax.errors import RESUBMIT

LOG = "log.txt"
# What a process learns from the command line and not from the environment.
SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


def beside(module: str, config, folder: Path, **places):
    """A context in which a stage runs beside what is done there; its lines go to `log.txt` in its folder.

    The context ends when both are done. If its own part is stopped or fails, the stage is asked to save and
    stop as well. Whether the stage succeeded its `done.json` says. On an accelerator, which one process
    fills and owns, nothing is begun.

    Args:
        module: name of the stage's module.
        config, folder, places: what its `run` takes.
    """
    if jax.default_backend() != "cpu" or usable_cores() < 2 or jax.process_count() > 1:
        return nullcontext()
    print(f"{folder.name} runs beside it: its lines are in {folder / LOG}", flush=True)
    return _process(module, config, folder, places)


@contextmanager
def _process(module: str, config, folder: Path, places: dict) -> Iterator[None]:
    settings = {name: getattr(jax.config, name) for name in SETTINGS}
    process = multiprocessing.get_context("spawn").Process(
        target=_run, args=(module, config, folder, places, settings), daemon=True
    )
    process.start()
    try:
        yield
    except BaseException:
        process.terminate()
        raise
    finally:
        process.join()


def _run(module: str, config, folder: Path, places: dict, settings: dict) -> None:
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(RESUBMIT))
    logging.getLogger("absl").setLevel(logging.ERROR)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then asks us
    for name, value in settings.items():
        jax.config.update(name, value)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        import_module(module).run(config, folder, **places)


def _leave_with_the_parent() -> None:
    """Ends this process when the parent is gone, so that a restart finds nobody writing in the folder."""
    multiprocessing.parent_process().join()
    os._exit(RESUBMIT)
