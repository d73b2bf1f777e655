"""What is known of a launch: `.launch/NAME/launch.json`, from which `status`, `logs` and `stop` work."""

import fcntl
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from gptjax.launching.shell import LaunchError, Shell

FOLDER = Path(".launch")
NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")


@dataclass(frozen=True)
class Launch:
    """A command and where it runs.

    Attributes:
        name: of the launch, and of what it makes: the slice, the job, the workload.
        platform: local, tpu, slurm or xpk.
        command: its words.
        options: the platform's.
        retries: how often it is started again.
        revision: of the tree that was shipped, with +changes if it had any.
        job: what the platform calls it, where that is not the name.
    """

    name: str
    platform: str
    command: list[str]
    options: dict = field(default_factory=dict)
    retries: int = 50
    revision: str = ""
    job: str = ""

    @property
    def folder(self) -> Path:
        """Where everything about it lies on this machine."""
        return FOLDER / self.name

    @property
    def stopped(self) -> Path:
        """The file that is there once a person has stopped it."""
        return self.folder / "stopped"

    def save(self, shell: Shell, **changes) -> "Launch":
        """Writes the record, with these changes; returns it."""
        changed = replace(self, **changes)
        if not shell.dry_run:
            shell.write(self.folder / "launch.json", json.dumps(asdict(changed), indent=2) + "\n")
        return changed


def read_launch(name: str) -> Launch:
    """The record of a launch.

    Raises:
        LaunchError: there is none of this name.
    """
    path = FOLDER / name / "launch.json"
    if not path.exists():
        known = sorted(found.parent.name for found in FOLDER.glob("*/launch.json"))
        there = f"there are {', '.join(known)}" if known else "nothing was launched from this folder yet"
        raise LaunchError(f"there is no launch {name}: {there}")
    return Launch(**json.loads(path.read_text("utf-8")))


@contextmanager
def hold(launch: Launch, shell: Shell) -> Iterator[None]:
    """Says that this process looks after the launch, for as long as it lives; under `dry_run` nothing.

    Raises:
        LaunchError: another does.
    """
    if shell.dry_run:
        yield
        return
    launch.folder.mkdir(parents=True, exist_ok=True)
    with (launch.folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LaunchError(
                f"{launch.name} runs already: stop it with ./launch.sh stop {launch.name}, or choose another "
                "--name"
            ) from error
        yield


def is_held(launch: Launch) -> bool:
    """Says whether a process looks after the launch."""
    try:
        with hold(launch, Shell()):
            return False
    except LaunchError:
        return True


def check_name(name: str) -> str:
    """The name, if every platform takes it.

    Raises:
        LaunchError: it does not.
    """
    if not NAME.fullmatch(name):
        raise LaunchError(
            f"{name} is not a name everywhere: use at most 40 letters from a to z, digits and dashes, with a "
            "letter first"
        )
    return name
