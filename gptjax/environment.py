"""What a run stands on: Python, packages, devices, the git revision; and whether an accelerator lies idle."""

import ctypes
import glob
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptjax.config import ConfigError, flatten, to_json

_PACKAGES = (
    "gptjax jax jaxlib jax-cuda12-plugin jax-cuda13-plugin libtpu flax optax orbax-checkpoint grain "
    "sentencepiece pydantic numpy"
).split()
# PCI device numbers of TPU chips (vendor 0x1ae0, Google), v2 to v7; Google's network cards share the vendor.
_TPU_CHIPS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}


def describe_environment() -> dict:
    """Facts about the machine and the program, as JSON values; `packages` maps names to versions.

    Holds neither the host's name nor environment variables, so that it can be pasted anywhere.

    Raises:
      ConfigError: see `find_devices`.
    """
    import jax

    devices = find_devices()
    kinds = sorted({device.device_kind for device in devices})
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "devices": f"{len(devices)} x {', '.join(kinds)}",
        "processes": jax.process_count(),
        "cores": usable_cores(),
        "memory_gib": _memory_gib(),
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
        "git": git_revision(),
        "warnings": warnings(jax.default_backend(), accelerators_present(), installed_packages()),
        "packages": installed_packages(),
    }


def usable_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def return_freed_memory() -> None:
    """Has the C library return to the system what has been freed; glibc would keep much of it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def find_devices() -> list:
    """The devices of the default backend.

    Raises:
      ConfigError: JAX cannot start a backend, such as one of `JAX_PLATFORMS` that is not installed.
    """
    import jax

    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # some versions of JAX assert that they found a backend
        wanted, reason = os.environ.get("JAX_PLATFORMS"), str(error).split("\n")[0]
        asked = f" for JAX_PLATFORMS={wanted}" if wanted else ""
        raise ConfigError(
            f"JAX finds no device{asked}{reason and f' ({reason})'}: "
            f"{'unset it' if wanted else 'set JAX_PLATFORMS=cpu'}, or install JAX for the accelerator with "
            "ACCELERATOR=cuda12 ./launch.sh quickstart (cuda12, cuda13 or tpu)"
        ) from error


def run_header(config: Any = None) -> str:
    """Backend, devices and versions in a few lines, with a WARNING when an accelerator lies idle.

    Args:
      config: the configclass of the run, whose meshes tell how many devices it uses.

    Raises:
      ConfigError: see `find_devices`.
    """
    facts = describe_environment()
    if config is not None:
        facts["warnings"] += idle_devices(config, facts["backend"], len(find_devices()))
    packages = facts["packages"]
    versions = "  ".join(f"{name} {packages[name]}" for name in ("jax", "flax", "optax") if name in packages)
    lines = [
        f"gptjax {packages.get('gptjax', '(not installed)')}  revision {facts['git']}",
        f"backend {facts['backend']}  devices {facts['devices']}  cores {facts['cores']}"
        f"  memory {facts['memory_gib']} GiB",
        f"python {facts['python']}  {versions}",
    ]
    return "\n".join(lines + [f"WARNING: {warning}" for warning in facts["warnings"]])


def environment_text() -> str:
    """All facts, one a line, to paste into a bug report."""
    facts = describe_environment()
    lines = [f"{name}: {value}" for name, value in facts.items() if name not in ("packages", "warnings")]
    lines += [f"{name}=={version}" for name, version in facts["packages"].items()]
    return "\n".join(lines + [f"WARNING: {warning}" for warning in facts["warnings"]])


def installed_packages() -> dict[str, str]:
    """Versions of the packages that matter, as far as they are installed."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_revision() -> str:
    """The commit of the source tree, with `+changes` when tracked files differ from it.

    A tree that was shipped without its history is told by GPTJAX_REVISION, which the launcher sets.
    """
    source = Path(__file__).parent

    def git(*arguments: str) -> str:
        answer = subprocess.run(["git", "-C", source, *arguments], capture_output=True, text=True, timeout=10)
        return answer.stdout.strip() if answer.returncode == 0 else ""

    try:
        tracked = git("ls-files", "--error-unmatch", Path(__file__).name)
        revision = git("rev-parse", "--short=12", "HEAD") if tracked else ""
        changed = bool(revision) and bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.TimeoutExpired):
        return "unknown: git did not answer"
    if not revision:
        return os.environ.get("GPTJAX_REVISION") or "not a git checkout"
    return revision + ("+changes" if changed else "")


def accelerators_present(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> list[str]:
    """Names of the accelerator families this machine shows, whether JAX uses them or not."""
    found = []
    if (root / "dev/nvidia0").exists() or (root / "proc/driver/nvidia/version").exists():
        found.append("NVIDIA GPU")
    chips = {
        (folder / "device").read_text().strip()
        for folder in (root / "sys/bus/pci/devices").glob("*")
        if (folder / "vendor").exists() and (folder / "vendor").read_text().strip() == "0x1ae0"
    }
    if glob.glob(str(root / "dev/accel[0-9]*")) or chips & _TPU_CHIPS or environ.get("TPU_NAME"):
        found.append("TPU")
    return found


def warnings(backend: str, present: list[str], packages: Mapping[str, str]) -> list[str]:
    """One sentence with its remedy for every accelerator that lies idle or version that does not fit."""
    sentences = []
    for plugin in ("jax-cuda12-plugin", "jax-cuda13-plugin"):
        if plugin in packages and packages[plugin] != packages.get("jaxlib"):
            extra = plugin.split("-")[1]
            sentences.append(
                f"{plugin} {packages[plugin]} does not fit jaxlib {packages.get('jaxlib')}: no GPU is used;"
                f" install both together with ACCELERATOR={extra} ./launch.sh quickstart"
            )
    if backend != "cpu":
        return sentences
    forced = os.environ.get("JAX_PLATFORMS")
    for name in present:
        extra = "tpu" if name == "TPU" else "cuda12"
        remedy = f"run ACCELERATOR={extra} ./launch.sh quickstart to install JAX for it"
        if forced:
            remedy = f"JAX_PLATFORMS={forced} is set: unset it to use the {name}"
        sentences.append(f"this machine has a {name}, but JAX runs on the CPU: {remedy}")
    return sentences


def idle_devices(config: Any, backend: str, present: int) -> list[str]:
    """A sentence with its remedy when the largest mesh of a configuration leaves accelerators unused."""
    sizes: dict[str, int] = {}
    for key, value in flatten(to_json(config)).items():
        group, _, axis = key.rpartition(".")
        if group.split(".")[-1] == "mesh" and axis != "type":
            sizes[group] = sizes.get(group, 1) * value
    used = max(sizes.values(), default=present)
    if backend == "cpu" or used >= present:
        return []
    keys = " or ".join(f"{group}.data" for group in sizes)
    return [f"this machine has {present} devices, but the run uses {used}: raise {keys} to use the others"]


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def use_compilation_cache() -> Path:
    """Keeps compiled programs in `$JAX_COMPILATION_CACHE_DIR` or `~/.cache/gptjax/jax` for the next start.

    They lie in `cores-N` there: XLA cuts a CPU's programs to the cores it may use, and one that was cut to
    others adds up in another order. A run that found it would have other bits than one that did not.
    """
    import jax

    kept = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path.home() / ".cache/gptjax/jax")
    folder = kept / f"cores-{usable_cores()}"
    # Whoever can write here can make us run their machine code.
    kept.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True, mode=0o700)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return folder
