"""What quantised weights cost and save: perplexity on held-out text, memory of a process that runs them.

    ./launch.sh chat                     # once: fetches SmolLM2-135M-Instruct and imports it
    python benchmarks/quantization.py
    python benchmarks/quantization.py runs/quickstart/pretrain --bytes 100000

Every burst is a fresh process that has loaded a tiny model before. It loads the run, quantises its linear
maps and forgets the float32 ones, as `gptjax chat --weights` does; then it reads the text. Counted is the
resident memory beyond what was resident before: after loading, and at the peak while it reads. The texts are
the held-out split of a bundled source or of a file, as in pretraining.
"""

import gc
import os
import tempfile
import time
from argparse import ArgumentParser
from dataclasses import replace
from functools import partial
from pathlib import Path

from harness import Burst, Worker, interleave, measure
from import_memory import TINY, status, write_model
from results import bar, command_line, parse, publish

BATCH = 1  # rows at a time: what is held are weights, not activations
SAVED = 0.8  # of the bytes that the arrays say; memory in pieces is not given back


def formats(group: int) -> dict:
    """Name -> how the linear maps are quantised; None leaves them."""
    from gptjax.models.quantization import WEIGHT_FORMATS, QuantizationConfig

    def grouped(bits):
        return QuantizationConfig(bits=bits, group_size=group, scale_dtype="bfloat16")

    both = {f"int{bits}, groups of {group}": grouped(bits) for bits in (8, 4)}
    return {"float32": None, **WEIGHT_FORMATS, **both}


def run_once(run: str, tiny: str, source: str, size: int, length: int, config):
    """Runs in a fresh process: loads, reads once; (no further work, its facts in bytes and seconds)."""
    import jax

    from gptjax.data.corpora import read_documents
    from gptjax.environment import return_freed_memory
    from gptjax.evaluation.perplexity import first_bytes
    from gptjax.evaluation.quantized import weight_figures
    from gptjax.models.quantization import quantize
    from gptjax.sharding.mesh import MeshConfig, make_mesh
    from gptjax.stages.handover import load_model
    from gptjax.stages.language_loss import make_sum_loss

    texts = first_bytes([d.text for d in read_documents(source, split="heldout")], size)
    load_model(tiny, make_mesh(MeshConfig()))
    gc.collect()
    return_freed_memory()
    before = status("VmRSS")
    model = load_model(run, make_mesh(MeshConfig()), "language")
    if config is not None:
        model = replace(model, params=jax.block_until_ready(quantize(model.params, config)))
    gc.collect()
    return_freed_memory()
    held = status("VmRSS") - before
    length = min(length, model.definition.config.context_length)
    read = partial(weight_figures, sum_loss=make_sum_loss(model.definition), length=length, batch_size=BATCH)
    read(model, ["compiled"])
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
    begun, cpu = time.perf_counter(), time.process_time()
    figures = read(model, texts)
    facts = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
    return None, facts | figures | {"held": held, "peak": status("VmHWM") - before}


def run_format(name: str, arguments: tuple, threads, facts: dict) -> Burst:
    """One burst; what it found is kept in `facts[name]`."""

    def work():
        worker = Worker(name, run_once, *arguments, threads=threads)
        worker.close()
        facts[name] = worker.facts
        return {"units": worker.facts["tokens"]} | {k: worker.facts[k] for k in ("seconds", "cpu_seconds")}

    return measure(name, work)


def options() -> ArgumentParser:
    """The command line."""
    parser = command_line(__doc__.splitlines()[0], bursts=1, limit=0)
    parser.add_argument("run", nargs="?", default="runs/smollm2", help="a language model's run folder")
    parser.add_argument("--source", default="shakespeare", help="a bundled source, or text of one's own")
    parser.add_argument("--bytes", type=int, default=20_000, help="about how much of its held-out text")
    parser.add_argument("--group-size", type=int, default=32, help="inputs per scale in the rows with groups")
    parser.add_argument("--length", type=int, default=256, help="tokens per row")
    return parser


def table(facts: dict[str, dict]) -> tuple[list[dict], list[dict]]:
    """The figures and the bars."""
    plain, rows, bars = facts["float32"], [], []
    sizes = {"weights MB": "bytes", "linear maps MB": "linear_bytes", "held MB": "held", "peak MB": "peak"}
    for name, found in facts.items():
        row = {"weights": name} | {title: f"{found[key] / 1e6:.1f}" for title, key in sizes.items()}
        row |= {"bits per byte": f"{found['bits_per_byte']:.4f}", "perplexity": f"{found['perplexity']:.3f}"}
        row["change"] = f"{100 * (found['perplexity'] / plain['perplexity'] - 1):+.2f} %"
        rows.append(row | {"CPU s": found["cpu_seconds"]})
        if found is not plain:
            wanted = SAVED * (plain["bytes"] - found["bytes"]) / 1e6
            for key, title in (("held", "after loading"), ("peak", "while it runs")):
                saved = (plain[key] - found[key]) / 1e6
                bars.append(bar(f"{name}: MB saved {title}", saved, round(wanted, 1), at_least=True))
    return rows, bars


def main() -> None:
    """Runs the benchmark."""
    from gptjax.interop.importing import import_model

    chosen, facts = parse(options()), {}
    with tempfile.TemporaryDirectory() as folder:
        tiny = import_model(write_model(Path(folder) / "source", TINY), Path(folder) / "tiny")
        run = str(tiny) if chosen.quick else chosen.run
        turns = []
        for name, config in formats(16 if chosen.quick else chosen.group_size).items():
            arguments = run, str(tiny), chosen.source, chosen.bytes, chosen.length, config
            turns.append(partial(run_format, name, arguments, chosen.threads, facts))
        bursts = interleave(turns, chosen.bursts, chosen.limit)
    chosen.run = "tiny" if chosen.quick else os.path.basename(os.path.abspath(chosen.run))
    publish("quantization", chosen, bursts, *table(facts), facts=facts)


if __name__ == "__main__":
    main()
