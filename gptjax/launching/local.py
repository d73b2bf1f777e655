"""Several processes on this machine, joined by `jax.distributed`: a pod in small."""

import os
import signal
import socket
import subprocess
import sys
import time
from threading import Thread

from gptjax.errors import RESUBMIT
from gptjax.launching.outcome import exit_code, outcome
from gptjax.launching.record import Launch, hold, is_held
from gptjax.launching.shell import LaunchError, Shell

# How long the others get to leave by themselves once one has ended: those that save, and those that were
# left alone, who notice after the heartbeat's time and can save nothing any more.
TO_SAVE, TO_NOTICE = 120.0, 20.0
HEARTBEAT = 10


def start(launch: Launch, shell: Shell) -> int:
    """Starts the workers, again after 75; returns the launch's exit code. Worker 0 speaks to the terminal."""
    print(f"launch: {launch.options['processes']} processes, their logs in {launch.folder}", flush=True)
    if shell.dry_run:
        for index in range(launch.options["processes"]):
            settings = variables(launch, index, port=1234)
            shell.run(*launch.command, **settings)
        return 0
    stopped = Stop()
    with hold(launch, shell):
        launch.save(shell, job=str(os.getpid()))
        for attempt in range(launch.retries + 1):
            if attempt:
                print(f"launch: {launch.name} is started again, attempt {attempt + 1}", flush=True)
            stopped.workers, reader = start_workers(launch, attempt)
            code = outcome(wait_for(stopped.workers))
            reader.join()
            if code != RESUBMIT or stopped.asked:
                return code
    print(f"launch: {launch.name} was started again {launch.retries} times (--retries)", flush=True)
    return RESUBMIT


def variables(launch: Launch, index: int, port: int) -> dict[str, str]:
    """What tells a worker its place among the others, and how many devices the CPU shall show."""
    processes, devices = launch.options["processes"], launch.options["devices"]
    others = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(index),
        "GPTJAX_HEARTBEAT_SECONDS": str(HEARTBEAT),
    }
    shown = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return (others if processes > 1 else {}) | (shown if devices else {})


class Stop:
    """Passes SIGTERM and SIGINT on to the workers, which save and leave; nothing is started again then."""

    def __init__(self):
        self.asked = False
        self.workers: list[subprocess.Popen] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, *_):
        self.asked = True
        for worker in self.workers:
            worker.send_signal(signal.SIGTERM)  # those that have ended are left alone


def start_workers(launch: Launch, attempt: int) -> tuple[list[subprocess.Popen], Thread]:
    """One process for each worker, and the thread that shows what the first one prints.

    What each prints goes to `worker-INDEX.log` in the launch's folder.
    """
    launch.folder.mkdir(parents=True, exist_ok=True)
    port, workers = free_port(), []
    for index in range(launch.options["processes"]):
        log = (launch.folder / f"worker-{index}.log").open("ab")
        log.write(f"--- attempt {attempt + 1}\n".encode())
        log.flush()
        try:
            worker = subprocess.Popen(
                launch.command,
                env=os.environ | variables(launch, index, port),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if index == 0 else log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the launcher alone, which passes it on once
            )
        except OSError as error:
            raise LaunchError(f"{launch.command[0]} cannot be run: {error.strerror}") from error
        if index == 0:
            reader = Thread(target=_show, args=(worker.stdout, log), daemon=True)
            reader.start()
        workers.append(worker)
    return workers, reader


def _show(source, log) -> None:
    for chunk in iter(lambda: source.read1(65536), b""):
        for target in (log, sys.stdout.buffer):
            target.write(chunk)
            target.flush()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(workers: list[subprocess.Popen]) -> list[int]:
    """The workers' exit codes; who has not left some time after another has failed is killed."""
    limit = None
    while None in (codes := [worker.poll() for worker in workers]):
        failed = [exit_code(code) for code in codes if code]
        if failed and limit is None:
            limit = time.monotonic() + (TO_SAVE if set(failed) == {RESUBMIT} else TO_NOTICE)
        if limit is not None and time.monotonic() > limit:
            for worker in workers:
                worker.kill()  # those that have ended are left alone
        time.sleep(0.1)
    return [exit_code(code) for code in codes]


def status(launch: Launch, shell: Shell) -> int:
    """Says whether the launcher still runs."""
    print(f"{launch.name}: {'running' if is_held(launch) else 'not running'}")
    return 0


def logs(launch: Launch, shell: Shell) -> int:
    """Follows worker 0."""
    return shell.run("tail", "-n", "+1", "-F", launch.folder / "worker-0.log")


def stop(launch: Launch, shell: Shell) -> int:
    """Asks the launcher to stop; its workers save first."""
    if not is_held(launch):
        raise LaunchError(f"{launch.name} does not run any more")
    return shell.run("kill", "-TERM", launch.job)
