"""What checkpoints cost the training loop: the quickstart's pretraining, and a state of about 1 GB.

A burst does some steps, asks for a checkpoint and does as many steps while it is written. The stall is what
the second half takes longer: taking the arrays and their digests, and the steps that are slower meanwhile.
On a machine that is not quiet the CPU seconds of a save stand for it, as if every core were always wanted.

    python benchmarks/saving.py
"""

import dataclasses
import tempfile
import time
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

import numpy as np
from harness import Burst, Worker, interleave, start
from results import bar, command_line, is_quiet, parse, publish, summarise

from gptjax.config import load_experiment
from gptjax.stages.pretrain import PretrainConfig
from gptjax.training.optimizers import OptimizerConfig

QUICKSTART = Path(__file__).parent.parent / "experiments/quickstart.py"
SMALL, LARGE = "quickstart", "1 GB"
STALL_BAR = 0.02


def pretraining(name: str) -> PretrainConfig:
    """The quickstart's, or a wider one with AdamW that is saved as often as pretraining is by default."""
    config = load_experiment(QUICKSTART).pretrain
    if name == SMALL:
        return config
    width, layers = {LARGE: (1024, 6), "tiny": (64, 1)}[name]
    model = dataclasses.replace(config.model, width=width, layers=layers, heads=width // 64)
    usual = {"optimizer": OptimizerConfig(), "save_every": PretrainConfig.save_every}
    return dataclasses.replace(config, model=model, batch_size=4, **usual)


def build(config: PretrainConfig, steps: int, folder: str):
    """Pretraining's step and its checkpoints, warm: (work, facts)."""
    import jax

    from gptjax.data.packing import lm_batch
    from gptjax.models.functional import ModelDefinition
    from gptjax.models.heads import LanguageModel
    from gptjax.sharding.mesh import make_mesh, place
    from gptjax.stages.language_loss import PLAIN, count_tokens, make_language_loss, select
    from gptjax.stages.sharded import compile_step, create_state
    from gptjax.training.checkpoint import Checkpoints
    from gptjax.training.optimizers import make_optimizer
    from gptjax.training.step import make_train_step

    definition, mesh = ModelDefinition(LanguageModel, config.model), make_mesh(config.mesh)
    optimizer, key = make_optimizer(config.optimizer, config.steps, definition.axes), jax.random.key(0)
    step = compile_step(make_train_step(make_language_loss(definition), count_tokens, optimizer), mesh)
    state = create_state(definition, optimizer, mesh, key=key)
    shape = config.batch_size, config.length + 1
    rows = np.random.default_rng(1).integers(0, config.model.vocab_size, shape, np.int32)
    batch, checkpoints, saved = place(select(lm_batch(rows), PLAIN), mesh), Checkpoints(Path(folder), {}), 0

    def run():
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, batch, key)
            float(metrics["loss"])  # the loop logs every step

    def work():
        nonlocal saved
        clocks = [(time.perf_counter(), time.process_time())]

        def lap():
            clocks.append((time.perf_counter(), time.process_time()))
            return [now - before for before, now in zip(*clocks[-2:], strict=True)]

        saved += 1
        run()
        plain, plain_cpu = lap()
        checkpoints.save(saved, state)
        call, call_cpu = lap()
        run()
        beside, beside_cpu = lap()
        if not checkpoints.settle():
            raise OSError(f"a checkpoint could not be written to {folder}")
        rest, rest_cpu = lap()
        cpu = {"step CPU": plain_cpu / steps, "save CPU": call_cpu + beside_cpu + rest_cpu - plain_cpu}
        wall = {"step": plain / steps, "stall": call + beside - plain}
        return 2 * steps, wall | cpu | {"call": call, "written": call + beside + rest}

    work()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return work, {"state_mib": size / 2**20, "save_every": config.save_every, "steps": steps}


def start_workers(options: Namespace, folder: str) -> list[Worker]:
    """The processes of both states, warm."""
    sizes = {"tiny": 2} if options.quick else {SMALL: options.steps[0], LARGE: options.steps[1]}
    builds = {
        name: partial(build, pretraining(name), steps, f"{folder}/{name}") for name, steps in sizes.items()
    }
    return start(builds, options.threads)


def row(name: str, bursts: list[Burst], facts: dict) -> dict:
    """One state's line of the table: medians over the kept bursts, over all if none was kept."""
    one, about = summarise(bursts)[name], facts[name]
    own = [burst for burst in bursts if burst.name == name]
    own = [burst.phases for burst in own if burst.kept] or [burst.phases for burst in own]
    part = {phase: float(np.median([phases[phase] for phases in own])) for phase in own[0]}
    return {
        "state": name,
        "MiB": about["state_mib"],
        "s/step": part["step"],
        "save call s": part["call"],
        "stall s": part["stall"],
        "on the disk after s": part["written"],
        "CPU s/step": part["step CPU"],
        "CPU s/save": part["save CPU"],
        "steps between saves": about["save_every"],
        "stall, share": part["stall"] / (about["save_every"] * part["step"]),
        "CPU, share": part["save CPU"] / (about["save_every"] * part["step CPU"]),
        "peak MiB": one.peak_mib,
        "kept": f"{one.kept} of {one.kept + one.dropped}",
    }


def options() -> ArgumentParser:
    """The command line."""
    parser = command_line(__doc__.splitlines()[0], bursts=3, limit=240)
    parser.add_argument(
        "--steps", type=int, nargs=2, default=[3, 3], help="steps in half a burst of each (default: 3 3)"
    )
    return parser


def main() -> None:
    """Runs the benchmark."""
    chosen = parse(options())
    with tempfile.TemporaryDirectory() as folder:
        workers = start_workers(chosen, folder)
        facts = {worker.name: worker.facts for worker in workers}
        bursts = interleave([worker.burst for worker in workers], chosen.bursts, chosen.limit)
        for worker in workers:
            worker.close()
    rows = [row(name, bursts, facts) for name in facts]
    share = "stall, share" if is_quiet(summarise(bursts).values()) else "CPU, share"
    bars = [bar(f"{share}: {one['state']}", one[share], STALL_BAR, at_least=False) for one in rows]
    publish("saving", chosen, bursts, rows, bars, facts=facts)


if __name__ == "__main__":
    main()
