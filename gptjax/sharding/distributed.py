"""Several processes as one program: `jax.distributed`, started where a cluster is found or asked for.

Everywhere else nothing happens: a laptop, a notebook and one process of a sweep need no coordinator.
"""

import os
from collections.abc import Mapping

import jax

from gptjax.config import ConfigError
from gptjax.errors import RESUBMIT, UserError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
ASKED = "GPTJAX_DISTRIBUTED"  # 1: join the cluster that JAX finds here; 0: stay alone
HEARTBEAT = "GPTJAX_HEARTBEAT_SECONDS"
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


class ClusterUnreachable(UserError):
    """The processes did not find each other; the same command may succeed later."""

    exit_code = RESUBMIT


def find_cluster(environ: Mapping[str, str] = os.environ) -> dict | None:
    """The arguments of `jax.distributed.initialize`, or None where this process works alone.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID name a cluster. A SLURM step or an Open MPI
    job of several tasks is detected, and a Cloud TPU slice whose environment lists several hosts.
    GPTJAX_DISTRIBUTED=1 asks for whatever JAX itself detects, GPTJAX_DISTRIBUTED=0 for none.

    Raises:
        ConfigError: a variable is missing, is no number, or is out of range.
    """
    if environ.get(ASKED, "") not in ("", "0", "1"):
        raise ConfigError(f"{ASKED}={environ[ASKED]} is unknown: it is 1 to join a cluster, 0 to stay alone")
    if environ.get(ASKED) == "0":
        return None
    if ADDRESS in environ:
        count, index = _number(environ, COUNT), _number(environ, INDEX)
        if not 0 <= index < count:
            raise ConfigError(f"{INDEX}={index} is not a process of {COUNT}={count}: number them from 0")
        return {"coordinator_address": environ[ADDRESS], "num_processes": count, "process_id": index}
    hosts = environ.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
    detected = (
        all(name in environ for name in SLURM) and _number(environ, "SLURM_NTASKS") > 1,
        "OMPI_COMM_WORLD_SIZE" in environ and _number(environ, "OMPI_COMM_WORLD_SIZE") > 1,
        hosts > 1 or "MEGASCALE_COORDINATOR_ADDRESS" in environ,
    )
    return {} if environ.get(ASKED) == "1" or any(detected) else None


def join_cluster(environ: Mapping[str, str] = os.environ) -> None:
    """Makes this process one of its cluster's, if there is one; call it before any device is touched.

    Raises:
        ConfigError: see `find_cluster`; or a cluster was asked for, and JAX finds none.
        ClusterUnreachable: the other processes did not answer in time.
    """
    found = find_cluster(environ)
    if found is None:
        return
    alone = {"cluster_detection_method": "deactivate"} if found else {}
    heartbeat = _number(environ, HEARTBEAT) if HEARTBEAT in environ else 100
    try:
        jax.distributed.initialize(**found, **alone, heartbeat_timeout_seconds=heartbeat)
    except ValueError as error:
        raise ConfigError(
            f"{ASKED}=1 asks for a cluster, but JAX finds none here ({error}): set {ADDRESS}, {COUNT} and "
            f"{INDEX}, or unset {ASKED}"
        ) from error
    except RuntimeError as error:
        who = f"process {found['process_id']} of {found['num_processes']}" if found else "this process"
        where = f" at {found['coordinator_address']}" if found else ""
        raise ClusterUnreachable(
            f"{who} could not join the others{where} ({str(error).splitlines()[0]}): see that all were "
            "started and that process 0's port is open to them"
        ) from error


def wait_for_all(name: str) -> None:
    """Returns once every process has come here; `name` tells the places apart."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def _number(environ: Mapping[str, str], name: str) -> int:
    value = environ.get(name)
    if value is None:
        raise ConfigError(f"{ADDRESS} is set, but {name} is not: set {ADDRESS}, {COUNT} and {INDEX} together")
    if not value.isdecimal():
        raise ConfigError(f"{name}={value} is not a whole number")
    return int(value)
