"""`./launch.sh local|tpu|slurm|xpk [OPTIONS] -- COMMAND ...` and `./launch.sh status|logs|stop NAME`."""

import argparse
import sys
from types import ModuleType

from gptjax.errors import UserError
from gptjax.launching import local, slurm, tpu, xpk
from gptjax.launching.environments import ENVIRONMENTS, table
from gptjax.launching.record import Launch, check_name, read_launch
from gptjax.launching.shell import LaunchError, Shell

PLATFORMS: dict[str, ModuleType] = {"local": local, "tpu": tpu, "slurm": slurm, "xpk": xpk}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, as everything here does."""

    def error(self, message: str):
        raise LaunchError(f"{message}; see {self.prog} --help")


def parser() -> Parser:
    """The options of every platform and verb."""
    root = Parser(prog="./launch.sh", allow_abbrev=False)
    commands = root.add_subparsers(dest="platform", required=True, metavar="PLATFORM", parser_class=Parser)

    def add(name: str, about: str, shipped: bool = True):
        platform = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        platform.add_argument("--name", type=check_name, default=name, help=f"default: {name}")
        platform.add_argument("--retries", type=natural, default=50, help="further starts (default: 50)")
        platform.add_argument("--dry-run", action="store_true", help="print every command, run none")
        if shipped:
            platform.add_argument("--dirty", action="store_true", help="ship and record what no commit holds")
        return platform

    here = add("local", "several processes on this machine, joined as those of a pod are", shipped=False)
    here.add_argument("--processes", type=count, default=1, help="how many")
    here.add_argument("--devices", type=count, help="virtual CPU devices in each (default: what JAX finds)")

    pod = add("tpu", "a Cloud TPU slice, made where it is missing")
    pod.add_argument("--type", required=True, help="such as v5litepod-16, v5p-128, v6e-64")
    pod.add_argument("--zone", required=True, help="such as us-east5-b")
    pod.add_argument("--bucket", required=True, help="holds runs/, whatever becomes of the slice")
    pod.add_argument("--project", default="", help="default: gcloud's")
    pod.add_argument("--version", default="", help="the slice's software (default: by its type)")
    pod.add_argument("--spot", action="store_true", help="cheaper, and may be taken away at any time")
    pod.add_argument("--queued", action="store_true", help="ask through a queued resource")
    pod.add_argument("--delete", action="store_true", help="give the slice back once the command has ended")

    job = add("slurm", "a SLURM job, from a folder that every node sees")
    job.add_argument("--nodes", type=count, default=1, help="how many (default: 1)")
    job.add_argument("--gpus", type=natural, default=8, help="on each node; 0: CPUs alone (default: 8)")
    job.add_argument("--accelerator", choices=sorted(ENVIRONMENTS), default="cuda13", help="default: cuda13")
    job.add_argument("--slurm", default="", metavar="OPTIONS", help="further options of sbatch, as one word")

    workload = add("xpk", "a workload on a GKE cluster of TPUs")
    workload.add_argument("--cluster", required=True)
    workload.add_argument("--type", required=True, help="such as v5litepod-256")
    workload.add_argument("--runs", required=True, help="where the cluster mounts its storage")
    workload.add_argument("--slices", type=count, default=1, help="how many (default: 1)")
    workload.add_argument("--zone", default="", help="default: gcloud's")
    workload.add_argument("--project", default="", help="default: gcloud's")
    workload.add_argument("--image", default="python:3.12", help="default: python:3.12")

    for verb, about in (
        ("status", "say how a launch does"),
        ("logs", "follow the log of its first worker"),
        ("stop", "have it save and leave; it is not started again"),
    ):
        known = commands.add_parser(verb, help=about, description=about, allow_abbrev=False)
        known.add_argument("name", type=check_name)
        known.add_argument("--dry-run", action="store_true", help="print every command, run none")
        if verb == "stop":
            known.add_argument("--delete", action="store_true", help="give the TPU slice back then")
    return root


def count(word: str) -> int:
    """A whole number from 1."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is not a whole number from 1")
    return int(word)


def natural(word: str) -> int:
    """A whole number from 0."""
    return 0 if word == "0" else count(word)


def main(arguments: list[str]) -> int:
    """Runs one command; returns its exit code."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    try:
        options = vars(parser().parse_args(arguments[:cut]))
        shell, verb = Shell(options.pop("dry_run")), options.pop("platform")
        if verb in PLATFORMS:
            return begin(verb, arguments[cut + 1 :], options, shell)
        launch = read_launch(options["name"])
        more = {"delete": True} if options.get("delete") and launch.platform == "tpu" else {}
        return getattr(PLATFORMS[launch.platform], verb)(launch, shell, **more)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("launch: no longer followed; ./launch.sh status, logs and stop know its name", file=sys.stderr)
        return 130


def begin(platform: str, command: list[str], options: dict, shell: Shell) -> int:
    """Starts a command on a platform and follows it."""
    if not command:
        raise LaunchError(f"write: ./launch.sh {platform} [OPTIONS] -- COMMAND ...")
    if options.get("gpus") == 0:
        options["accelerator"] = "cpu"
    launch = Launch(options.pop("name"), platform, command, options, options.pop("retries"))
    accelerator = {"tpu": "tpu", "xpk": "tpu"}.get(platform) or options.get("accelerator")
    if accelerator:  # launch.sh sets it where the command runs, and has printed it if that is here
        print(f"environment ({accelerator}), unless it is set there already:")
        print("".join(f"  {line}\n" for line in table(accelerator).splitlines()), end="", flush=True)
    return PLATFORMS[platform].start(launch, shell)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
