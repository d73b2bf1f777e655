"""`gptjax plan`: what a run needs before it is paid for."""

import json
import sys
from pathlib import Path

from gptjax.arguments import Parser
from gptjax.config import ConfigError, load_experiment, run_name
from gptjax.overrides import override
from gptjax.planning.topology import GIB, Topology, parse_topology

OPTIONS = ("--topology", "--mesh", "--memory", "--price", "--base", "--no-compile", "--json", "--help")


def parser() -> Parser:
    """The options; what is left over are keys of the experiment."""
    found = Parser(
        prog="gptjax plan",
        usage="gptjax plan EXPERIMENT [--topology T] [--mesh M] [--KEY VALUE ...]",
        description="Parameters, operations, memory, traffic and time of an experiment, without its devices.",
        epilog="Exit code 1: it does not fit. --KEY VALUE sets a key of the experiment, as in gptjax train.",
        allow_abbrev=False,
    )
    found.add_argument("experiment", help="a Python file with config()")
    found.add_argument(
        "--topology", help="v5p:8x8x8, v5e:16x16, h100x512 or cpu:64 (default: CPUs, as many as the mesh has)"
    )
    found.add_argument("--mesh", help="such as fsdp=64,tensor=8, instead of the experiment's")
    found.add_argument("--memory", type=float, metavar="GIB", help="of one device, instead of the chip's")
    found.add_argument("--price", type=float, metavar="DOLLARS", help="of a device for an hour")
    found.add_argument(
        "--base",
        action="append",
        default=[],
        metavar="RUN=FAMILY:SIZE",
        help="the model in a run folder that is not there, such as runs/gpt2=gpt2:124M",
    )
    found.add_argument("--no-compile", action="store_true", help="estimate only, which takes seconds")
    found.add_argument("--json", action="store_true", help="print JSON, sizes in bytes")
    return found


def run_plan(arguments: list[str]) -> int:
    """Prints the plan; returns 0, or 1 where a stage does not fit."""
    options, overrides = parser().parse_known_args(arguments)
    from gptjax.planning.compiling import can_compile
    from gptjax.planning.plan import plan
    from gptjax.planning.report import plan_json, plan_text

    config = override(load_experiment(options.experiment), overrides, options.experiment, OPTIONS)
    mesh = read_mesh(options.mesh) if options.mesh else None
    topology = parse_topology(options.topology) if options.topology else _as_large(config, mesh)
    compiler, lacking = not options.no_compile, can_compile(topology)
    if compiler and lacking:
        print(f"{lacking}; what follows is estimated", file=sys.stderr)
    plans = plan(
        config,
        run_name(options.experiment),
        topology,
        experiments=_experiments(Path(options.experiment)),
        known=dict(map(read_base, options.base)),
        mesh=mesh,
        memory=None if options.memory is None else options.memory * GIB,
        compiler=compiler and not lacking,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if options.json:
        print(json.dumps(plan_json(plans, topology, options.price), indent=2))
    else:
        print(plan_text(plans, topology, options.price))
    return 0 if all(stage.fits for stage in plans.values()) else 1


def read_mesh(text: str) -> dict[str, int]:
    """`fsdp=64,tensor=8` as sizes by axis.

    Raises:
        ConfigError: it reads otherwise.
    """
    parts = [part.partition("=") for part in text.split(",")]
    if not all(equals and size.isdigit() and int(size) for _, equals, size in parts):
        raise ConfigError(f"--mesh {text} must read like fsdp=64,tensor=8")
    return {axis.strip(): int(size) for axis, _, size in parts}


def read_base(text: str) -> tuple[str, tuple]:
    """`runs/x=gpt2:124M` as (run folder, shape).

    Raises:
        ConfigError: it reads otherwise, or there is no such model.
    """
    from gptjax.models.families import FAMILIES
    from gptjax.stages.handover import KINDS

    folder, _, model = text.partition("=")
    family, _, size = model.partition(":")
    if family not in FAMILIES:
        raise ConfigError(f"--base {text} must read like runs/x=gpt2:124M, with one of {', '.join(FAMILIES)}")
    declared = FAMILIES[family]
    kind = next(kind for kind, module in KINDS.items() if module is declared.model)
    return folder, (kind, declared.make(size))


def _as_large(config, mesh: dict[str, int] | None) -> Topology:
    """CPUs for a mesh, or for that of the experiment, or of the first of its stages that has one."""
    if mesh is None:
        stages = [config, *vars(config).values()]
        count = next((stage.mesh.size for stage in stages if hasattr(stage, "mesh")), 1)
    else:
        count = 1
        for size in mesh.values():
            count *= size
    return parse_topology(f"cpu:{count}")


def _experiments(file: Path) -> Path | None:
    """The folder `experiments` that the file lies in."""
    return next((folder for folder in file.absolute().parents if folder.name == "experiments"), None)
