"""Stands for SLURM on one machine: for sbatch, srun and so on, by the name it is called with.

In `$FAKE_CLOUD`: `calls.jsonl` (every call), `job.json` (state, exit code), `tasks/N` (process ids),
`requeue`, and `busy`, which the queue answers by a time-out, once.
"""

import json
import os
import signal
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
JOB, TASKS = CLOUD / "job.json", 2


def write_job(state, code=0):
    (CLOUD / "job.new").write_text(json.dumps({"state": state, "code": code}))
    (CLOUD / "job.new").rename(JOB)


def sbatch(words):
    write_job("PENDING")
    subprocess.Popen(
        [sys.executable, "-SI", __file__, "controller", words[-1]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    print("7;cluster")
    return 0


def controller(words):
    """Runs the job's script, again as long as it asks to be queued again."""
    restarts = 0
    while True:
        write_job("RUNNING")
        settings = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
        with (CLOUD / "job.log").open("ab") as log:
            done = subprocess.run(["bash", *words], env=os.environ | settings, stdout=log, stderr=log)
        if not (CLOUD / "requeue").exists():
            write_job("COMPLETED" if done.returncode == 0 else "FAILED", done.returncode)
            return 0
        (CLOUD / "requeue").unlink()
        restarts += 1


def srun(words):
    """Runs one process for each task; as srun, says the largest of their exit codes."""
    options = list(takewhile(lambda word: word.startswith("--"), words))
    command, named = words[len(options) :], dict(word[2:].split("=", 1) for word in options)
    (CLOUD / "tasks").mkdir(exist_ok=True)
    tasks = []
    for index in range(TASKS):
        log = open(named["output"].replace("%t", str(index)), "ab")  # noqa: SIM115
        settings = os.environ | {"SLURM_PROCID": str(index), "SLURM_NTASKS": str(TASKS)}
        tasks.append(
            subprocess.Popen(
                command, cwd=named["chdir"], env=settings, stdout=log, stderr=log, start_new_session=True
            )
        )
        (CLOUD / "tasks" / str(index)).write_text(str(tasks[-1].pid))
    return max(task.wait() if task.wait() >= 0 else 128 - task.wait() for task in tasks)


def squeue(words):
    if (CLOUD / "busy").exists():
        (CLOUD / "busy").unlink()
        print("slurm_load_jobs error: Socket timed out on send/recv operation", file=sys.stderr)
        return 1
    job = json.loads(JOB.read_text())
    if job["state"] in ("PENDING", "RUNNING"):
        print(job["state"])
    return 0


def sacct(words):
    job = json.loads(JOB.read_text())
    print(f"{job['state']}|{job['code']}:0")
    return 0


def scancel(words):
    """Sends the signal to every process of every task, as SLURM does."""
    for task in (CLOUD / "tasks").iterdir():
        os.killpg(int(task.read_text()), signal.SIGTERM)
    return 0


def scontrol(words):
    (CLOUD / "requeue").touch()
    return 0


name = Path(sys.argv[0]).name
words = sys.argv[1:]
if words[0] == "controller":
    name, *words = words
else:
    with (CLOUD / "calls.jsonl").open("a") as file:
        file.write(json.dumps([name, *words]) + "\n")
sys.exit(globals()[name](words))
