"""Tokens per second of gptjax's pretraining step beside a nanoGPT-shaped torch float32 step.

Model "a": 6 layers, width 384, 6 heads, vocabulary 8192, length 256, batch 16; forward, backward, clipping,
AdamW. All start from the same weights and batch, and the losses of their first steps must agree.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --compute-dtype bfloat16 --loop unroll --attention cudnn
"""

import itertools
import time
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from functools import partial

import numpy as np
from gpt2_weights import Shape, gptjax_config, gptjax_params, random_weights
from harness import Worker, interleave, start
from results import bar, check_agreement, command_line, installed, is_quiet, parse, publish, ratio, summarise

MODEL_A, BATCH_A = Shape(layers=6, width=384, heads=6, vocab_size=8192, positions=256), 16
TINY, BATCH_TINY = Shape(layers=2, width=64, heads=2, vocab_size=512, positions=64), 4
OPTIMIZER = {
    "learning_rate": 6e-4,
    "b1": 0.9,
    "b2": 0.95,
    "epsilon": 1e-8,
    "weight_decay": 0.1,
    "clip_norm": 1.0,
}
PEER = "torch float32"
# The peer's GELU is the erf form, ours GPT-2's tanh form; bfloat16 keeps three digits of the operands.
AGREEMENT = {"float32": 1e-3, "bfloat16": 1e-2}
SPEED_BAR, COMPILE_BAR = 0.75, 8.0


def token_rows(shape: Shape, batch: int) -> np.ndarray:
    """Random rows int32 `[batch, length + 1]`."""
    return np.random.default_rng(1).integers(0, shape.vocab_size, (batch, shape.positions + 1), np.int32)


def pretrain_step(shape: Shape, **changes):
    """gptjax's train step as `gptjax/stages/pretrain.py` builds it: (definition, optimizer, mesh, step)."""
    from gptjax.models.functional import ModelDefinition
    from gptjax.models.heads import LanguageModel
    from gptjax.sharding.mesh import MeshConfig, make_mesh
    from gptjax.stages.language_loss import count_tokens, make_language_loss
    from gptjax.stages.sharded import compile_step
    from gptjax.training.optimizers import OptimizerConfig, make_optimizer
    from gptjax.training.step import make_train_step

    definition = ModelDefinition(LanguageModel, gptjax_config(shape, **changes))
    optimizer = make_optimizer(OptimizerConfig(schedule="constant", **OPTIMIZER), 1000, definition.axes)
    step = make_train_step(make_language_loss(definition), count_tokens, optimizer)
    mesh = make_mesh(MeshConfig())
    return definition, optimizer, mesh, compile_step(step, mesh)


def pretrain_batch(shape: Shape, batch: int, mesh):
    """A batch on the device, as pretraining places it."""
    from gptjax.data.packing import lm_batch
    from gptjax.sharding.mesh import place
    from gptjax.stages.language_loss import PLAIN, select

    return place(select(lm_batch(token_rows(shape, batch)), PLAIN), mesh)


def build_gptjax(shape: Shape, batch: int, steps: int, changes: dict):
    """gptjax's step, warm: (work, facts)."""
    import jax

    from gptjax.models.functional import matmul_flops_per_token
    from gptjax.stages.sharded import create_state
    from gptjax.training.loop import peak_flops

    jax.config.update("jax_enable_compilation_cache", False)  # its first step is to be compiled
    definition, optimizer, mesh, step = pretrain_step(shape, **changes)
    params = gptjax_params(random_weights(shape), shape.layers)
    state = create_state(definition, optimizer, mesh, params=jax.tree.map(jax.numpy.asarray, params))
    rows, key = pretrain_batch(shape, batch, mesh), jax.random.key(0)
    seconds, losses = [], []

    def one():
        nonlocal state
        state, metrics = step(state, rows, key)
        return metrics["loss"]

    for _ in range(3):
        begun = time.perf_counter()
        losses.append(float(one()))
        seconds.append(time.perf_counter() - begun)

    def work():
        for _ in range(steps):
            loss = one()
        jax.block_until_ready(loss)
        return steps * batch * shape.positions

    return work, {
        "losses": losses,
        "compile_seconds": seconds[0] - min(seconds[1:]),
        "device": jax.devices()[0].device_kind,
        "flops_per_token": matmul_flops_per_token(definition, shape.positions),
        "peak_flops": peak_flops(1),
    }


def build_torch(shape: Shape, batch: int, steps: int):
    """The peer's step, warm: (work, facts)."""
    import nanogpt
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = torch.tensor(token_rows(shape, batch), dtype=torch.long, device=device)
    model = nanogpt.load(shape, random_weights(shape)).to(device)
    step = nanogpt.make_step(model, rows[:, :-1], rows[:, 1:], OPTIMIZER)
    losses = [step().item() for _ in range(3)]

    def work():
        for _ in range(steps):
            loss = step()
        loss.item()  # waits for the device
        return steps * batch * shape.positions

    return work, {"losses": losses, "compile_seconds": 0.0, "device": device}


def start_workers(options: Namespace) -> list[Worker]:
    """The processes of all implementations, warm."""
    shape, batch, steps = (TINY, BATCH_TINY, 2) if options.quick else (MODEL_A, BATCH_A, options.steps)
    builds = {PEER: partial(build_torch, shape, batch, steps)} if installed("torch") else {}
    for dtype, loop in itertools.product(options.compute_dtype, options.loop):
        changes = {"compute_dtype": dtype, "loop": loop, "attention": options.attention}
        builds[f"gptjax {dtype} {loop}"] = partial(build_gptjax, shape, batch, steps, changes)
    return start(builds, options.threads)


def row(name, figures, facts, tokens_per_step, quiet) -> dict:
    """One implementation's line of the table."""
    one, seconds = figures[name], figures[name].seconds_per_unit
    flops, peak = facts[name].get("flops_per_token"), facts[name].get("peak_flops")
    columns = {
        "implementation": name,
        "ms/step": 1e3 * tokens_per_step * seconds,
        "fastest": 1e3 * tokens_per_step * one.fastest,
        "slowest": 1e3 * tokens_per_step * one.slowest,
        "tokens/s": 1 / seconds,
        "CPU s/step": tokens_per_step * one.cpu_seconds_per_unit,
        f"speed / {PEER}": ratio(figures[PEER], one, quiet) if PEER in figures else None,
        "GFLOP/s": flops / seconds / 1e9 if flops else None,
        "compile s": facts[name]["compile_seconds"],
        "others' CPU while it compiled": facts[name]["others_at_start"],
        "peak MiB": one.peak_mib,
        "kept": f"{one.kept} of {one.kept + one.dropped}",
    }
    return columns | ({"MFU": flops / seconds / peak} if peak else {})


def options() -> ArgumentParser:
    """The command line."""
    parser = command_line(__doc__.splitlines()[0], bursts=4, limit=150)
    parser.add_argument("--steps", type=int, default=2, help="steps in a burst (default: 2)")
    parser.add_argument(
        "--compute-dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"]
    )
    parser.add_argument("--loop", nargs="+", choices=["unroll", "scan"], default=["unroll", "scan"])
    parser.add_argument("--attention", choices=["reference", "xla", "cudnn"], default="reference")
    return parser


def main() -> None:
    """Runs the benchmark."""
    chosen = parse(options())
    workers = start_workers(chosen)
    facts = {worker.name: worker.facts for worker in workers}
    check_agreement(facts, "losses", AGREEMENT)
    bursts = interleave([worker.burst for worker in workers], chosen.bursts, chosen.limit)
    for worker in workers:
        worker.close()

    figures = summarise(bursts)
    quiet = is_quiet(figures.values())
    tokens_per_step = BATCH_TINY * TINY.positions if chosen.quick else BATCH_A * MODEL_A.positions
    rows = [row(name, figures, facts, tokens_per_step, quiet) for name in figures]
    ours = [r for r in rows if r["implementation"] != PEER]
    cost = "ms/step" if quiet else "CPU s/step"
    best = min(ours, key=lambda r: r[cost])
    bars = [
        bar(f"speed / {PEER}, {best['implementation']}", best[f"speed / {PEER}"], SPEED_BAR, at_least=True),
        bar(f"compile seconds, {best['implementation']}", best["compile s"], COMPILE_BAR, at_least=False),
    ]
    shape = asdict(TINY if chosen.quick else MODEL_A)
    publish("train_step", chosen, bursts, rows, bars, facts=facts, shape=shape)


if __name__ == "__main__":
    main()
