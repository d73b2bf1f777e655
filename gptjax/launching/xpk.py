"""A workload on a GKE cluster of TPUs, through xpk, which makes an image of the tree and restarts it."""

import shlex
from pathlib import Path

from gptjax.errors import RESUBMIT
from gptjax.launching.record import Launch, hold
from gptjax.launching.shell import Shell
from gptjax.launching.shipping import in_environment, pack

GRACE = 300  # seconds that a run gets to save before its host is taken away


def start(launch: Launch, shell: Shell) -> int:
    """Creates the workload, shows its log and waits for its end; returns what xpk says of it."""
    with hold(launch, shell):
        launch = pack(launch, shell, launch.options["dirty"])
        tree = launch.folder / "tree"
        shell.must("rm", "-rf", tree)
        shell.must("mkdir", "-p", tree)
        shell.must("tar", "-xzf", launch.folder / "code.tar.gz", "-C", tree)
        shell.must(*creation(launch, tree))
        logs(launch, shell)
        return shell.run(*xpk(launch, "list", "--wait-for-job-completion", launch.name))


def xpk(launch: Launch, verb: str, *words: str) -> list[str]:
    """An xpk command about workloads, in the cluster of the launch."""
    options = launch.options
    where = [f"--{name}={options[name]}" for name in ("cluster", "zone", "project") if options[name]]
    return ["xpk", "workload", verb, *where, *words]


def creation(launch: Launch, tree: Path) -> list[str]:
    """The words that create the workload."""
    options = launch.options
    run = shlex.join(in_environment(launch, "tpu", GPTJAX_DISTRIBUTED="1"))
    return xpk(
        launch,
        "create",
        f"--workload={launch.name}",
        f"--tpu-type={options['type']}",
        f"--num-slices={options['slices']}",
        f"--base-docker-image={options['image']}",
        f"--script-dir={tree}",
        f"--max-restarts={launch.retries}",
        f"--restart-on-exit-codes={RESUBMIT}",
        f"--termination-grace-period-seconds={GRACE}",
        # exec, so that the signal that ends a host reaches the run.
        f"--command=ln -sfn {shlex.quote(options['runs'])} runs && exec {run}",
    )


def status(launch: Launch, shell: Shell) -> int:
    """The workload in the cluster's list."""
    return shell.run(*xpk(launch, "list", f"--filter-by-job={launch.name}"))


def logs(launch: Launch, shell: Shell) -> int:
    """Follows the first host of the first slice."""
    labels = (
        f"jobset.sigs.k8s.io/jobset-name={launch.name}",
        "jobset.sigs.k8s.io/job-index=0",
        "batch.kubernetes.io/job-completion-index=0",
    )
    return shell.run("kubectl", "logs", "--follow", "--tail=-1", f"--selector={','.join(labels)}")


def stop(launch: Launch, shell: Shell) -> int:
    """Deletes the workload: its hosts get SIGTERM, and time to save."""
    return shell.run(*xpk(launch, "delete", f"--workload={launch.name}", "--force"))
