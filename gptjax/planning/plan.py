"""The plan of an experiment: what each of its stages needs, takes and costs, without its devices."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gptjax.config import ConfigError
from gptjax.planning.advice import suggestions
from gptjax.planning.collectives import Collective
from gptjax.planning.compiling import compile_stages
from gptjax.planning.estimate import POLICIES, estimate, needed
from gptjax.planning.operations import Operations, operations
from gptjax.planning.programs import Program, Work, abstract_mesh, device_bytes
from gptjax.planning.roofline import Roofline, roofline
from gptjax.planning.shapes import Shape, Shapes
from gptjax.planning.topology import Topology
from gptjax.planning.work import stages_of, work_of
from gptjax.sharding.mesh import MESH_AXES, MeshConfig

USABLE = 0.92  # of a device's memory: the rest is the runtime's, and what lies scattered between buffers


@dataclass(frozen=True)
class StagePlan:
    """What one stage needs.

    Attributes:
        work: see its class.
        memory: kind -> bytes on one device, by the estimate.
        activations: policy of `remat` -> bytes on one device.
        model: operations of a step without those that are computed again.
        done: with them, those of the optimiser, and those below.
        idle: operations of a pipeline's stages on what no one reads, while they would wait.
        compiled: what the compiler says of each program; None where it was not asked.
        collectives: of a step, all programs together; None without a compiler.
        times: None where the chip's peak is not known.
        limit: bytes that a program may use; None where nothing says.
        advice: (change, bytes a device by the estimate); [] where the stage fits.
    """

    work: Work
    memory: dict[str, int]
    activations: dict[str, int]
    model: Operations
    done: Operations
    idle: float
    compiled: list[dict] | None
    collectives: list[Collective] | None
    times: Roofline | None
    limit: float | None
    advice: list[tuple[str, int]]

    @property
    def estimated(self) -> int:
        """Bytes a device by the estimate."""
        return needed(self.memory)

    @property
    def peak(self) -> float:
        """Bytes a device: of the compiled program that needs most, infinite where one was refused."""
        if self.compiled is None:
            return self.estimated
        return max(map(self.program_bytes, self.compiled))

    def program_bytes(self, facts: dict) -> float:
        """Bytes a device while a compiled program runs, with what the stage holds besides its arguments."""
        if "error" in facts:
            return float("inf")
        held = sum(map(device_bytes, self.work.held.values()))
        besides = max(0, held - facts["resident"])
        made = facts["outputs"] - facts["aliased"]
        return besides + facts["arguments"] + made + facts["temporary"]

    @property
    def fits(self) -> bool:
        """Whether it does; True where nothing says how much there is."""
        return self.limit is None or self.peak <= self.limit


def plan(
    config,
    name: str,
    topology: Topology,
    *,
    experiments: Path | None = None,
    known: Mapping[str, Shape] | None = None,
    mesh: Mapping[str, int] | None = None,
    memory: float | None = None,
    compiler: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, StagePlan]:
    """Stage name -> its plan.

    Args:
        config: of an experiment.
        name: of the run.
        topology: where it is to run.
        experiments, known: see `Shapes`.
        mesh: axis -> size, instead of every stage's own.
        memory: bytes of one device, instead of the chip's.
        compiler: whether the programs are compiled; else estimates decide.
        say: is given a line as each program is compiled.

    Raises:
        ConfigError: the experiment trains nothing, a mesh has another size than the topology, or a base's
            shape is not known.
    """
    shapes = Shapes(experiments, known)
    stages = stages_of(config, shapes, name)
    if not stages:
        raise ConfigError(f"a {type(config).__name__} trains nothing, so there is nothing to plan")
    stages = {stage: on_mesh(own, topology, mesh) for stage, own in stages.items()}
    for own in stages.values():
        work_of(own, shapes)  # refuses what cannot be planned, before anything is compiled
    answers = compile_stages(stages, shapes, topology, say) if compiler else {}
    limit = topology.chip.memory if memory is None else memory
    usable = None if limit is None else USABLE * limit
    return {
        stage: _stage_plan(own, shapes, topology, answers.get(stage), usable) for stage, own in stages.items()
    }


def on_mesh(config, topology: Topology, mesh: Mapping[str, int] | None):
    """The stage's configuration on the given mesh.

    Raises:
        ConfigError: an unknown axis, a batch that does not divide, or another number of devices.
    """
    if mesh is not None:
        unknown = set(mesh) - set(MESH_AXES)
        if unknown:
            raise ConfigError(f"the mesh has no axis '{unknown.pop()}': its axes are {', '.join(MESH_AXES)}")
        try:
            whole = dataclasses.replace(config.mesh, **dict.fromkeys(MESH_AXES, 1) | dict(mesh))
            config = dataclasses.replace(config, mesh=whole)
        except ValueError as error:
            raise ConfigError(f"--mesh: {_sentence(error)}") from error
    if config.mesh.size != topology.devices:
        raise ConfigError(
            f"the mesh has {config.mesh.size} devices and {topology.name} has {topology.devices}: say how "
            f"they are used with --mesh, such as --mesh fsdp={topology.devices}"
        )
    return config


def _sentence(error: ValueError) -> str:
    errors = getattr(error, "errors", list)()
    return str(errors[0].get("ctx", {}).get("error", error)) if errors else str(error)


def _stage_plan(config, shapes: Shapes, topology: Topology, compiled, limit) -> StagePlan:
    works = {policy: _folded(config, shapes, policy) for policy in (None, *POLICIES)}
    work, plain = works[None], works["none"]
    memory = estimate(work, plain)
    activations = {}
    for policy in POLICIES:
        kinds = estimate(works[policy], plain)
        activations[policy] = kinds["activations"] + kinds.get("layer", 0)
    done, model, idle = _step_operations(config, shapes)
    collectives = None if compiled is None else _step_collectives(work, compiled)
    times = roofline(
        topology,
        {axis: getattr(config.mesh, axis) for axis in MESH_AXES},
        done=done.total,
        model=model.model,
        touched=touched_bytes(work, memory),
        collectives=collectives or [],
    )
    counts, traffic = (model, done, idle), (compiled, collectives, times)
    found = StagePlan(work, memory, activations, *counts, *traffic, limit, advice=[])
    if found.fits:
        return found

    def measure(changed, shapes):
        return needed(estimate(_folded(changed, shapes), _folded(changed, shapes, "none")))

    trained = work.programs[-1].training.model
    return dataclasses.replace(found, advice=suggestions(config, shapes, trained, measure, limit))


def _folded(config, shapes: Shapes, remat: str | None = None) -> Work:
    """The work of a stage with its layers in a loop: the same sizes and operations, traced once."""
    return work_of(config, shapes.changed(loop="scan", **({"remat": remat} if remat else {})))


def _step_operations(config, shapes: Shapes) -> tuple[Operations, Operations, float]:
    """(a step's, the model's own: those of one device that computes nothing again, those in the bubble)."""

    def on(mesh: MeshConfig, remat: str | None = None) -> Operations:
        work, abstract = _folded(dataclasses.replace(config, mesh=mesh), shapes, remat), abstract_mesh(mesh)
        return sum((operations(p, abstract).times(p.calls) for p in work.programs), Operations())

    done = on(config.mesh)
    straight = on(dataclasses.replace(config.mesh, stage=1)) if config.mesh.stage > 1 else done
    return done, on(MeshConfig(), "none"), done.model - straight.model


def _step_collectives(work: Work, compiled: list[dict]) -> list[Collective]:
    """Of a step: those of each program, times its calls; equal ones together."""
    places, calls, sizes = Counter(), Counter(), Counter()
    for program, facts in zip(work.programs, compiled, strict=True):
        for one in facts.get("collectives", ()):
            key = one["kind"], tuple(one["axes"]), one["devices"]
            places[key] += one["places"]
            calls[key] += one["calls"] * program.calls
            sizes[key] += one["bytes"] * program.calls
    found = [Collective(*key, places[key], calls[key], sizes[key]) for key in places]
    return sorted(found, key=lambda one: -one.bytes)


def touched_bytes(work: Work, memory: dict[str, int]) -> float:
    """Bytes that a device reads and writes in a step, from below: weights, activations, cache, and the state.

    A micro-batch, and in a pipeline a tick, reads the gathered weights forward, backward and once more if it
    computes again; activations are written and read; an update reads and writes the state and the gradient; a
    rollout reads the weights and half of the cache for every token.
    """
    return float(sum(program.calls * _program_bytes(work, program, memory) for program in work.programs))


def _program_bytes(work: Work, program: Program, memory: dict[str, int]) -> float:
    first = program.arguments[0]
    params = getattr(first, "params", first)
    gathered = device_bytes(params) * work.mesh.fsdp
    if program.training is None:
        return program.trips * (gathered + (memory.get("cache", 0) / 2 if program.trips > 1 else 0))
    training = program.training
    in_turn = max(1, training.rows // (training.local_rows * work.mesh.batch_shards))
    passes = 2 if training.model.remat == "none" else 3
    activations = 2 * memory.get("activations", 0)
    of_gradient = in_turn * (passes * work.ticks * gathered + activations)
    return of_gradient + 2 * device_bytes(first) + 2 * device_bytes(params)
