"""Runs the cells of a sweep as one array of SLURM jobs."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gptjax.config import ConfigError
from gptjax.errors import RESUBMIT
from gptjax.sweeps.plan import Cell

_SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}%{jobs}
#SBATCH --output={log}
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120
{options}# A run that is told to stop saves and exits with {resubmit}.
# Its job queues again and goes on from there.
cd {folder}
code=0
gptjax() {{
    local ended=0
    srun --ntasks=1 {python} -m gptjax.cli "$@" || ended=$?
    if [[ $ended == {resubmit} ]]; then
        scontrol requeue "$SLURM_JOB_ID"
        exit {resubmit}
    fi
    [[ $ended == 0 ]] || code=$ended
}}
case $SLURM_ARRAY_TASK_ID in
{cases}esac
exit $code
"""


def command_line(cell: Cell) -> str:
    """The command that runs a cell, as it is typed."""
    return shlex.join(["gptjax", *cell.words])


def chains(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that build on each other together, in order; the chains need nothing of each other."""
    found: list[list[Cell]] = []
    for cell in cells:
        touching = [chain for chain in found if cell.needs & {other.name for other in chain}]
        joined = [other for chain in touching for other in chain] + [cell]
        found = [chain for chain in found if chain not in touching] + [joined]
    return found


def array_script(cells: Sequence[Cell], name: str, runs: Path, jobs: int, options: str = "") -> str:
    """The sbatch script of an array with one task for every chain of unfinished cells.

    Args:
        cells: from `plan`, at least one of them unfinished.
        name: the sweep's.
        runs: the folder of all runs, which gets the array's output.
        jobs: tasks at a time.
        options: further options of sbatch, such as "--partition=gpu --time=4:00:00".
    """
    tasks = chains([cell for cell in cells if not cell.finished])
    cases = "".join(
        f"{number})\n" + "".join(f"    {command_line(cell)}\n" for cell in task) + "    ;;\n"
        for number, task in enumerate(tasks)
    )
    return _SCRIPT.format(
        name=name,
        last=len(tasks) - 1,
        jobs=jobs,
        log=runs / f"{name}-%a.log",
        options=f"#SBATCH {options}\n" if options else "",
        resubmit=RESUBMIT,
        folder=shlex.quote(os.getcwd()),
        python=shlex.quote(sys.executable),
        cases=cases,
    )


def submit(script: str, path: Path) -> None:
    """Writes the script and hands it to sbatch, which prints the number of the job.

    Raises:
        ConfigError: there is no sbatch here, or it refuses the script.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "there is no sbatch here: run this where SLURM is, or see the script with --dry-run"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script, "utf-8")
    print(f"wrote {path}", flush=True)
    code = subprocess.run(["sbatch", str(path)]).returncode
    if code:
        raise ConfigError(f"sbatch refused {path} with exit code {code}: see what it printed above")
