"""A SLURM job: its script, its queue, its log. The folder it is launched from must be seen by every node."""

import shlex
from pathlib import Path

from gptjax.errors import RESUBMIT
from gptjax.launching.outcome import SIGNAL
from gptjax.launching.record import Launch, hold
from gptjax.launching.shell import LaunchError, Shell
from gptjax.launching.shipping import choice_of, in_environment, pack

POLL, TRIES = 10.0, 6

SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
{gpus}#SBATCH --output={folder}/job.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@300
{options}# One task for each GPU, each with a log of its own. A run that is told to stop saves and leaves with
# {resubmit}: the job queues again, as it does when a signal ended a task; any other code ends it.
set -uo pipefail
export launch={folder}
rm -f "$launch/failed"
srun --kill-on-bad-exit=1 --chdir={tree} --output="$launch/worker-%t.log" --open-mode=append \\
    bash "$launch/task.sh" {command}
code=$?
[[ -s $launch/failed ]] && exit "$(head -n 1 "$launch/failed")"
if [[ $code != 0 && ! -e $launch/stopped && ${{SLURM_RESTART_COUNT:-0}} -lt {retries} ]]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit {resubmit}
fi
exit $code
"""

TASK = """# One task: a code that asks for a person is written down, as srun reports only the largest of all.
trap : TERM # SLURM sends it to every process of the task: this one waits for the run, which saves
code=0
"$@" || code=$?
case $code in
0 | {resubmit}) ;;
*) [[ $code -ge {signal} ]] || echo "$code" >>"$launch/failed" ;;
esac
exit "$code"
"""


def start(launch: Launch, shell: Shell) -> int:
    """Submits the job and follows it; returns its exit code."""
    with hold(launch, shell):
        launch = pack(launch, shell, launch.options["dirty"])
        folder = launch.folder.resolve()
        tree = unpack(launch, shell)
        shell.must(tree / "launch.sh", "local", "--", "true", **choice_of(launch.options["accelerator"]))
        shell.write(launch.folder / "task.sh", TASK.format(resubmit=RESUBMIT, signal=SIGNAL))
        shell.write(launch.folder / "job.sh", script(launch, folder))
        answer = shell.ask("sbatch", "--parsable", launch.folder / "job.sh")
        if answer.returncode:
            raise LaunchError(f"sbatch refused {launch.folder / 'job.sh'}: {answer.stderr.strip()}")
        launch = launch.save(shell, job=answer.stdout.strip().split(";")[0] or "JOB")
        if not shell.dry_run:
            print(f"launch: {launch.name} is job {launch.job}, its logs in {launch.folder}", flush=True)
        return follow(launch, shell)


# What the accounting says of a job that is still in the queue.
UNDER_WAY = {"PENDING", "RUNNING", "REQUEUED", "RESIZING", "SUSPENDED", "COMPLETING"}


def unpack(launch: Launch, shell: Shell) -> Path:
    """The tree of the commit in the launch's folder, with the environment of an earlier one, and our runs."""
    tree = launch.folder / "tree"
    shell.must("mkdir", "-p", tree, "runs")
    kept = ("!", "-name", ".venv", "!", "-name", "runs")
    shell.must("find", tree, "-mindepth", "1", "-maxdepth", "1", *kept, "-exec", "rm", "-rf", "{}", "+")
    shell.must("tar", "-xzf", launch.folder / "code.tar.gz", "-C", tree)
    shell.must("ln", "-sfn", Path("runs").resolve(), tree / "runs")
    for old in (launch.stopped, launch.folder / "failed"):
        shell.must("rm", "-f", old)
    return tree


def script(launch: Launch, folder: Path) -> str:
    """What sbatch is given."""
    options = launch.options
    return SCRIPT.format(
        name=launch.name,
        nodes=options["nodes"],
        tasks=options["gpus"] or 1,
        gpus=f"#SBATCH --gpus-per-node={options['gpus']}\n" if options["gpus"] else "",
        folder=shlex.quote(str(folder)),
        tree=shlex.quote(str(folder / "tree")),
        options=f"#SBATCH {options['slurm']}\n" if options["slurm"] else "",
        resubmit=RESUBMIT,
        retries=launch.retries,
        command=shlex.join(in_environment(launch, options["accelerator"])),
    )


def follow(launch: Launch, shell: Shell) -> int:
    """Shows what task 0 writes until the job has left the queue; returns its exit code."""
    log, shown = launch.folder / "worker-0.log", 0
    while True:
        queued = job_state(launch, shell)
        if log.exists():
            with log.open("rb") as file:
                file.seek(shown)
                text = file.read()
            shown += len(text)
            print(text.decode("utf-8", "replace"), end="", flush=True)
        if not queued and (code := ended(launch, shell)) is not None:
            return code
        shell.wait(POLL)


def job_state(launch: Launch, shell: Shell) -> str:
    """PENDING, RUNNING and so on; "" once the job has left the queue, as squeue also says by failing."""
    answer = shell.ask("squeue", "--noheader", "--jobs", launch.job, "--format", "%T")
    return answer.stdout.strip() if answer.returncode == 0 else ""


def ended(launch: Launch, shell: Shell) -> int | None:
    """The exit code of the job as the accounting has it, with the job's state as a sentence.

    None of a job that has not ended: the queue was too busy to answer.
    """
    words = ("--allocations", "--noheader", "--parsable2", "--format", "State,ExitCode")
    for _ in range(TRIES):  # the accounting learns of a job's end a little later than the queue
        answer = shell.ask("sacct", "--jobs", launch.job, *words)
        if shell.dry_run:
            return 0
        if "|" in answer.stdout:
            break
        shell.wait(POLL)
    else:
        reason = answer.stderr.strip() or "it knows no such job"
        raise LaunchError(f"job {launch.job} has left the queue, and sacct does not say how ({reason})")
    state, _, code = answer.stdout.strip().splitlines()[-1].rpartition("|")
    if state in UNDER_WAY:
        print(f"launch: job {launch.job} is {state}", flush=True)
        return None
    value, _, number = code.partition(":")
    print(f"launch: job {launch.job} ended as {state} with exit code {value}", flush=True)
    return int(value) or (SIGNAL + int(number) if int(number or 0) else int(state != "COMPLETED"))


def status(launch: Launch, shell: Shell) -> int:
    """The queue's view of the job, or how it ended."""
    state = job_state(launch, shell)
    if state or shell.dry_run:
        print(f"{launch.name}: job {launch.job} is {state or 'not asked for'}")
    if not state:
        ended(launch, shell)
    return 0


def logs(launch: Launch, shell: Shell) -> int:
    """Follows task 0."""
    return shell.run("tail", "-n", "+1", "-F", launch.folder / "worker-0.log")


def stop(launch: Launch, shell: Shell) -> int:
    """Asks the tasks of a running job to save and leave; takes a waiting one out of the queue."""
    shell.must("touch", launch.stopped)
    running = job_state(launch, shell) == "RUNNING" or shell.dry_run
    return shell.run("scancel", *(["--signal=TERM"] if running else []), launch.job)
