"""What `gptjax sweep` does: reads the sweep, and hands its cells to a backend."""

from pathlib import Path

from gptjax.config import ConfigError, run_name
from gptjax.sweeps.local import run_cells
from gptjax.sweeps.plan import load_sweep, plan
from gptjax.sweeps.slurm import array_script, command_line, submit


def run_sweep(file: Path, backend: str, jobs: int, runs: Path, options: str, dry_run: bool) -> int:
    """Runs, submits or prints the unfinished cells of a sweep; returns the exit code.

    Args:
        file: a Python file with `sweep()`.
        backend: "local", "slurm" or "print".
        jobs: runs at a time.
        runs: the folder of all runs.
        options: further options of sbatch.
        dry_run: print what would be run or submitted.

    Raises:
        ConfigError: a setting that cannot be used, or a run folder with another configuration.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, but {jobs} was given")
    if options and backend != "slurm":
        raise ConfigError("--slurm belongs to --backend slurm")
    cells = plan(load_sweep(file), file, runs)
    unfinished = [cell for cell in cells if not cell.finished]
    if not unfinished:
        print(f"all {len(cells)} runs are finished")
    elif backend == "slurm":
        name = run_name(file)
        script = array_script(cells, name, runs, jobs, options)
        if dry_run:
            print(script, end="")
        else:
            submit(script, runs / f"{name}.sbatch")
    elif backend == "print" or dry_run:
        for cell in unfinished:
            print(command_line(cell))
    else:
        return run_cells(cells, jobs)
    return 0
