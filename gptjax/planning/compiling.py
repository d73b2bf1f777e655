"""Ahead-of-time compilation for devices that are not there, in a process of its own.

JAX decides about its devices once in a process, before its first program; so the programs of a plan are
compiled in a fresh one, `python -m gptjax.planning.compiling REQUEST ANSWER`, with two JSON files.

CPU: as many virtual devices as the topology has. TPU: libtpu's description of the topology. NVIDIA: the
plugin's, with the figures of the target GPU. None of them needs the device, its driver or a network.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import jax
from jax.sharding import AxisType, Mesh

from gptjax.config import ConfigError, from_json, to_json
from gptjax.errors import UserError
from gptjax.planning.collectives import read_collectives
from gptjax.planning.programs import Program, device_bytes, lower
from gptjax.planning.shapes import Shapes
from gptjax.planning.topology import NODE, Topology, parse_topology
from gptjax.planning.work import work_of
from gptjax.sharding.mesh import MESH_AXES, MeshConfig

NEEDED = {"tpu": "libtpu", "cuda": "jax_cuda12_plugin"}

# What XLA asks of a GPU that is not there (`GpuTargetConfigProto`), of compute capability 9.0.
_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  core_count: 132 fpus_per_core: 128 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  clock_rate_ghz: 1.98 l2_cache_size: 52428800
  memory_bandwidth: {bandwidth} device_memory_size: {memory}
  cuda_compute_capability {{ major: 9 }}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} device_description_str: "{name}"
"""


def can_compile(topology: Topology) -> str:
    """ "" where programs for these chips can be compiled here; else what to install."""
    package = NEEDED.get(topology.chip.platform)
    if package is None or find_spec(package) is not None:
        return ""
    return f"compiling for {topology.name} needs {package}: pip install 'gptjax[plan]'"


def compile_stages(stages: dict, shapes: Shapes, topology: Topology, say=print) -> dict[str, list[dict]]:
    """Stage name -> what the compiler says of each of its programs.

    Args:
        stages: name -> configuration.
        shapes: of the models they start from.
        topology: to compile for.
        say: is given a line as each program is done.

    Returns:
        of every program `name`, `seconds`, and either `error`, the compiler's refusal, or in bytes a device
        `arguments`, `outputs`, `aliased`, `temporary`, `peak`, and `collectives` (`Collective`'s fields) of
        one call, with `unknown_loops` around them.

    Raises:
        ConfigError: a mesh does not lie on the topology.
        UserError: the process ended without an answer; its last lines are in the message.
    """
    request = {
        "topology": topology.name,
        "stages": {name: to_json(config) for name, config in stages.items()},
        "shapes": shapes.to_json(),
    }
    with tempfile.TemporaryDirectory(prefix="gptjax-plan-") as folder:
        asked, answered = Path(folder) / "request.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(request), "utf-8")
        command = [sys.executable, "-m", __spec__.name, str(asked), str(answered)]
        with (
            (Path(folder) / "log").open("w+") as log,
            subprocess.Popen(
                command, env=_environment(topology), stdout=subprocess.PIPE, stderr=log, text=True
            ) as process,
        ):
            for line in process.stdout:
                say(line.rstrip())
        if not answered.exists():
            last = (Path(folder) / "log").read_text("utf-8", "replace").strip().splitlines()[-3:]
            raise UserError(
                f"compiling for {topology.name} ended with code {process.returncode}: {' '.join(last)}"
            )
        found = json.loads(answered.read_text("utf-8"))
        if "refused" in found:
            raise ConfigError(found["refused"])
        return found


def _environment(topology: Topology) -> dict[str, str]:
    # A program out of the cache does not say what it was made of.
    own = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    if topology.chip.platform == "cpu":
        # Where buffers lie is decided before LLVM sees the program.
        own["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    elif topology.chip.platform == "tpu":
        own |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
        own["TPU_ACCELERATOR_TYPE"] = f"{topology.name.partition(':')[0]}-8"
    else:
        own |= {"JAX_PLATFORMS": "cuda,cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
    own["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    return os.environ | own


def target_devices(topology: Topology, config: MeshConfig):
    """The mesh of a configuration over devices that may not be there.

    Raises:
        ConfigError: its axes do not lie on the topology.
    """
    from jax.experimental import topologies

    shape = tuple(getattr(config, axis) for axis in MESH_AXES)
    chip, types = topology.chip, (AxisType.Auto,) * len(MESH_AXES)
    if chip.platform == "cpu":
        return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=jax.devices()[: config.size])
    if chip.platform == "tpu":
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology.name)
    else:
        nodes, share = (
            (topology.devices // NODE, NODE) if topology.devices % NODE == 0 else (1, topology.devices)
        )
        text = _HOPPER.format(
            bandwidth=int(chip.bandwidth), memory=int(chip.memory), name=f"NVIDIA {chip.kind}"
        )
        described = topologies.get_topology_desc(
            platform="cuda",
            topology_name=topology.name.replace(":", "x"),
            topology=f"1x{nodes}x{share}",
            target_config=text,
        )
    try:
        devices = topologies.make_mesh(described, shape, MESH_AXES).devices
    except (NotImplementedError, ValueError, AssertionError) as error:
        sizes = ", ".join(f"{axis} = {size}" for axis, size in zip(MESH_AXES, shape, strict=True))
        raise ConfigError(
            f"the mesh {sizes} does not lie on {topology.name}, of whose sizes it must be products: {error}"
        ) from error
    return Mesh(devices, MESH_AXES, axis_types=types)


def compiled_facts(program: Program, mesh) -> dict:
    """What the compiler says of one program; see `compile_stages`."""
    begun = time.monotonic()
    try:
        compiled = lower(program, mesh).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"name": program.name, "seconds": time.monotonic() - begun, "error": _refusal(str(error))}
    seconds, stats = time.monotonic() - begun, compiled.memory_analysis()
    found, unknown = read_collectives(compiled.as_text(), dict(mesh.shape))
    return {
        "name": program.name,
        "seconds": seconds,
        "arguments": stats.argument_size_in_bytes,
        "resident": sum(device_bytes(program.arguments[i]) for i in program.resident),
        "outputs": stats.output_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
        "temporary": stats.temp_size_in_bytes,
        "peak": getattr(stats, "peak_memory_in_bytes", 0),
        "collectives": [asdict(one) for one in found],
        "unknown_loops": unknown,
    }


def _refusal(text: str) -> str:
    """The sentence of the compiler that names the two sizes."""
    lines = [line.strip() for line in text.splitlines() if "exceed" in line.lower() or "RESOURCE" in line]
    return (lines or [text])[0][:300]


def main(request: str, answer: str) -> None:
    """Compiles what the request names and writes the answer."""
    asked = json.loads(Path(request).read_text("utf-8"))
    topology = parse_topology(asked["topology"])
    if topology.chip.platform == "cpu":
        jax.config.update("jax_num_cpu_devices", topology.devices)
    found = {}
    for stage, values in asked["stages"].items():
        config = from_json(values)
        mesh = target_devices(topology, config.mesh)
        work = work_of(config, Shapes(known=Shapes.from_json(asked["shapes"])), mesh)
        found[stage] = []
        for program in work.programs:
            facts = compiled_facts(program, mesh)
            print(f"{stage}: {program.name}: compiled in {facts['seconds']:.0f} s", flush=True)
            found[stage].append(facts)
    Path(answer).write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        Path(sys.argv[2]).write_text(json.dumps({"refused": str(error)}), "utf-8")
