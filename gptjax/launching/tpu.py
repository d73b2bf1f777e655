"""A Cloud TPU slice: made or used, given the tree, followed, made anew when it is preempted."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from gptjax.errors import RESUBMIT
from gptjax.launching.outcome import SIGNAL, outcome
from gptjax.launching.record import Launch, hold
from gptjax.launching.shell import LaunchError, Shell
from gptjax.launching.shipping import in_environment, pack

# The software a slice is made with, by the kind of its chips.
RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
GONE = {"PREEMPTED", "TERMINATED", "STOPPED", "FAILED", "HIDDEN", "UNKNOWN"}
POLL = 30.0
UNREACHABLE, TRIES = 255, 5  # the exit code of ssh itself
WORKER = Path("gptjax/launching/worker.sh")


@dataclass(frozen=True)
class Slice:
    """The slice of a launch, as gcloud knows it."""

    launch: Launch
    shell: Shell

    def words(self, verb: str, *arguments: str, kind: str = "tpu-vm") -> list[str]:
        """A gcloud command, in the zone of the slice."""
        options = self.launch.options
        project = ["--project", options["project"]] if options["project"] else []
        return ["gcloud", "compute", "tpus", kind, verb, *arguments, "--zone", options["zone"], *project]

    def state(self) -> str:
        """READY, CREATING, PREEMPTED and so on; "" where there is no such slice."""
        answer = self.shell.ask(*self.words("describe", self.launch.name, "--format", "value(state)"))
        if answer.returncode and "NOT_FOUND" not in answer.stderr:
            raise LaunchError(f"gcloud cannot describe the slice: {answer.stderr.strip()}")
        return "" if answer.returncode else answer.stdout.strip()

    def make_ready(self) -> None:
        """Makes the slice where it is missing or was taken away, and waits until it is ready."""
        state = self.state()
        if state in GONE:
            print(f"launch: the slice {self.launch.name} is {state} and is made anew", flush=True)
            self.delete()
            state = ""
        if not state:
            self.shell.must(*self._creation())
        while (
            not self.shell.dry_run and (state := self.state()) != "READY" and not self.launch.stopped.exists()
        ):
            if state in GONE:
                raise LaunchError(f"the slice {self.launch.name} is {state}: look at it in the cloud console")
            self.shell.wait(POLL)

    def delete(self) -> None:
        """Gives the slice back; what lies on its disks is lost."""
        if self.launch.options["queued"]:
            self.shell.must(
                *self.words("delete", self.launch.name, "--force", "--quiet", kind="queued-resources")
            )
        else:
            self.shell.must(*self.words("delete", self.launch.name, "--quiet"))

    def ssh(self, command: str, worker: str = "all") -> list[str]:
        """The words that run a command on the hosts, in the launch's folder there."""
        name = self.launch.name
        inside = f"mkdir -p launches/{name} && cd launches/{name} && {command}"
        return self.words("ssh", name, f"--worker={worker}", "--command", inside)

    def _creation(self) -> list[str]:
        name, options = self.launch.name, self.launch.options
        chips = ["--accelerator-type", options["type"]]
        version = options["version"] or runtime(options["type"])
        spot = ["--spot"] if options["spot"] else []
        if options["queued"]:
            more = ["--node-id", name, *chips, "--runtime-version", version, *spot]
            return self.words("create", name, *more, kind="queued-resources")
        return self.words("create", name, *chips, "--version", version, *spot)


def runtime(kind: str) -> str:
    """The software for slices of a type such as v5p-128.

    Raises:
        LaunchError: the chips are not in the table.
    """
    family = kind.split("-")[0]
    if family not in RUNTIMES:
        known = ", ".join(RUNTIMES)
        raise LaunchError(f"--type {kind} begins with none of {known}: name its software by --version")
    return RUNTIMES[family]


def start(launch: Launch, shell: Shell) -> int:
    """Runs the command on every host of the slice, again after 75 and a preemption; returns its exit code."""
    if not launch.options["version"]:
        runtime(launch.options["type"])  # refuses a type it does not know before anything is packed
    with hold(launch, shell):
        launch = pack(launch, shell, launch.options["dirty"])
        place = Slice(launch, shell)
        words = in_environment(launch, "tpu", GPTJAX_DISTRIBUTED="1")
        shell.write(launch.folder / "command.sh", f"exec {shlex.join(words)}\n")
        launch.stopped.unlink(missing_ok=True)
        try:
            code = run_attempts(place)
        except LaunchError:
            part_with(place, delete=False)  # a run of an earlier launch may work there
            raise
        part_with(place, delete=launch.options["delete"] and code != RESUBMIT)
        return code


def run_attempts(place: Slice) -> int:
    """Attempts until one ends otherwise than with 75, a person stops the run, or no retry is left."""
    launch = place.launch
    for attempt in range(launch.retries + 1):
        if attempt:
            print(f"launch: {launch.name} is started again, attempt {attempt + 1}", flush=True)
        code, stopped = run_once(place)
        # Hosts that are gone cannot say that a person has stopped the run.
        if place.shell.dry_run or stopped or launch.stopped.exists() or code != RESUBMIT:
            break
    return code


def part_with(place: Slice, delete: bool) -> None:
    """Gives the slice back, or says that it stays; a person who stopped the launch has been told."""
    launch = place.launch
    if delete:
        place.delete()
    elif not place.shell.dry_run and not launch.stopped.exists():
        print(f"launch: the slice {launch.name} stays and costs money: {deletion(launch)}", flush=True)


def deletion(launch: Launch) -> str:
    """How to give the slice back."""
    return f"give it back with ./launch.sh stop {launch.name} --delete"


def run_once(place: Slice) -> tuple[int, bool]:
    """One attempt, from making the slice ready to the end; (exit code, whether a person stopped it)."""
    launch, shell = place.launch, place.shell
    place.make_ready()
    shipped = [launch.folder / "code.tar.gz", launch.folder / "command.sh", WORKER]
    there = f"{launch.name}:launches/{launch.name}/"
    steps = (
        place.ssh("true"),
        place.words("scp", *map(str, shipped), there, "--worker=all"),
        place.ssh(shlex.join(["bash", "worker.sh", "prepare", "tpu", launch.options["bucket"]])),
        place.ssh("bash worker.sh start"),
    )
    for words in steps:
        if launch.stopped.exists():
            return RESUBMIT, True
        code = shell.run(*words)
        for _ in range(TRIES):
            if code != UNREACHABLE:
                break
            shell.wait(POLL)  # a slice is ready some seconds before its hosts answer
            code = shell.run(*words)
        if code:
            if place.state() == "READY":
                raise LaunchError(f"a command on the hosts of {launch.name} failed: see above")
            return RESUBMIT, False
    return follow(place)


def follow(place: Slice) -> tuple[int, bool]:
    """Shows the log of the first host until every host has ended; as `run_once`."""
    shell = place.shell
    while True:
        shell.run(*place.ssh("bash worker.sh follow", worker="0"))
        answer = shell.ask(*place.ssh("bash worker.sh state"))
        if shell.dry_run:
            return 0, False
        states = re.findall(r"^worker \S+ (.*)$", answer.stdout, re.MULTILINE)
        if answer.returncode or not states:
            if place.state() != "READY":
                return RESUBMIT, False
        elif not any(state.startswith("running") for state in states):
            stopped = any(state.endswith("stopped") for state in states)
            return outcome(worker_code(state) for state in states), stopped
        shell.wait(POLL)


def worker_code(state: str) -> int:
    """The exit code in what a host says of its worker; a lost one counts as killed."""
    found = re.match(r"ended (\d+)", state)
    return int(found[1]) if found else SIGNAL + 9


def status(launch: Launch, shell: Shell) -> int:
    """The state of the slice, and of the worker on each host."""
    place = Slice(launch, shell)
    state = place.state()
    print(f"{launch.name}: the slice is {state or 'not there'}")
    return shell.run(*place.ssh("bash worker.sh state")) if state == "READY" or shell.dry_run else 0


def logs(launch: Launch, shell: Shell) -> int:
    """Follows the first host."""
    return shell.run(*Slice(launch, shell).ssh("bash worker.sh follow", worker="0"))


def stop(launch: Launch, shell: Shell, delete: bool = False) -> int:
    """Asks every worker to save and leave; with `delete` gives the slice back then."""
    place = Slice(launch, shell)
    # Hosts that are deleted cannot tell the launcher, which would make a new slice and start the run again.
    if not shell.dry_run:
        launch.stopped.touch()
    code = shell.run(*place.ssh("bash worker.sh stop"))
    if not delete:
        print(f"launch: the slice {launch.name} stays and costs money: {deletion(launch)}")
        return code
    while not shell.dry_run and "running" in shell.ask(*place.ssh("bash worker.sh state")).stdout:
        shell.wait(POLL)
    place.delete()
    return 0
