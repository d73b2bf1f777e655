"""How much memory `gptjax import` takes at its peak: reading the tensors alone, and the whole import.

The model is a folder in Hugging Face's layout of SmolLM2-135M's shape in float32, with random numbers, or
what `--source` names. Every burst is a fresh process that has imported a tiny model before; counted is the
peak of its resident memory less what was resident before the import.

    python benchmarks/import_memory.py
"""

import json
import math
import os
import statistics
import tempfile
import time
from argparse import ArgumentParser
from functools import partial
from pathlib import Path

from harness import Burst, Worker, interleave, measure
from results import bar, command_line, parse, publish, summarise

SHAPE = {"vocab_size": 49_152, "width": 576, "layers": 30, "heads": 9, "kv_heads": 3, "mlp_width": 1536}
TINY = {"vocab_size": 400, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "mlp_width": 48}
READING, WHOLE = "reading", "whole import"


def write_model(folder: Path, shape: dict) -> Path:
    """Writes a LLaMA of the shape with a byte-level tokenizer; one tensor is in memory at a time."""
    import numpy as np

    from gptjax.data.byte_level import ByteLevelTokenizer, byte_characters
    from gptjax.interop.names import entries, tensor_shape
    from gptjax.interop.safetensors import write_safetensors
    from gptjax.models.families import llama
    from gptjax.models.functional import ModelDefinition
    from gptjax.models.heads import LanguageModel

    folder.mkdir()
    config = llama("7B", **shape, context_length=2048, tied=True)
    definition, rng = ModelDefinition(LanguageModel, config), np.random.default_rng(0)
    shapes = {e.name: tensor_shape(e, definition) for e in entries("llama", "hf", config, "language")}
    tensors = ((name, rng.standard_normal(size, np.float32)) for name, size in shapes.items())
    write_safetensors(folder / "model.safetensors", shapes, tensors)
    names = {"width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads"}
    names |= {"kv_heads": "num_key_value_heads", "mlp_width": "intermediate_size"}
    settings = {names.get(key, key): value for key, value in shape.items()}
    settings |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(settings))
    pieces = ["<|endoftext|>", *byte_characters()]
    tokenizer = ByteLevelTokenizer.from_pieces(pieces, [3] + [1] * (len(pieces) - 1), [], "gpt-2")
    tokenizer.save(folder / "tokenizer.json")
    return folder


def import_once(source: str, tiny: str, whole: bool):
    """Runs in a fresh process: the import, and (no further work, its facts in bytes and seconds)."""
    import gguf  # noqa: F401 - what dequantises is loaded before the measurement

    from gptjax.interop.importing import host_shardings, import_model, open_foreign, read_parameters

    with tempfile.TemporaryDirectory() as folder:
        import_model(tiny, f"{folder}/tiny")
        model = open_foreign(Path(source))
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
        before, begun, cpu = status("VmHWM"), time.perf_counter(), time.process_time()
        if whole:
            import_model(source, f"{folder}/run")
        else:
            read_parameters(model.tensors, model.wanted, model.definition, host_shardings(model.definition))
        facts = {"peak": status("VmHWM") - before, "seconds": time.perf_counter() - begun}
    facts |= {"cpu_seconds": time.process_time() - cpu, "model": 4 * model.definition.parameter_count}
    return None, facts | {"largest": 4 * max(map(math.prod, model.tensors.shapes().values()))}


def status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def run_import(name: str, source: Path, tiny: Path, threads, facts: dict) -> Burst:
    """One import; what it found is added to `facts[name]`."""

    def work():
        worker = Worker(name, import_once, str(source), str(tiny), name == WHOLE, threads=threads)
        worker.close()
        facts.setdefault(name, []).append(worker.facts)
        return {"units": 1} | {part: worker.facts[part] for part in ("seconds", "cpu_seconds")}

    return measure(name, work)


def options() -> ArgumentParser:
    """The command line."""
    parser = command_line(__doc__.splitlines()[0], bursts=3, limit=120)
    parser.add_argument("--source", type=Path, help="a GGUF file or a folder (default: a random model)")
    return parser


def main() -> None:
    """Runs the benchmark."""
    chosen = parse(options())
    facts: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as folder:
        tiny = write_model(Path(folder) / "tiny", TINY)
        source = chosen.source or write_model(Path(folder) / "model", TINY if chosen.quick else SHAPE)
        turns = [partial(run_import, n, source, tiny, chosen.threads, facts) for n in (READING, WHOLE)]
        bursts = interleave(turns, chosen.bursts, chosen.limit)
    rows, bars = [], []
    for name, figures in summarise(bursts).items():
        found = facts[name]
        peak, model, largest = (
            statistics.median(f[part] for f in found) for part in ("peak", "model", "largest")
        )
        rows.append(
            {
                "what": name,
                "peak MB": peak / 1e6,
                "model MB": model / 1e6,
                "largest tensor MB": largest / 1e6,
                "seconds": figures.seconds_per_unit,
                "CPU s": figures.cpu_seconds_per_unit,
                "kept": f"{figures.kept} of {figures.kept + figures.dropped}",
            }
        )
        bars.append(bar(f"{name}: peak MB", peak / 1e6, round((model + largest) / 1e6, 1), at_least=False))
    chosen.source = os.path.basename(chosen.source) if chosen.source else "random"
    publish("import_memory", chosen, bursts, rows, bars, facts=facts)


if __name__ == "__main__":
    main()
