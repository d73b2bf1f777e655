"""New tokens per second of gptjax's decoding beside `transformers` generate, with the same random weights.

Prompts of 64 tokens, 128 new ones, temperature 1, top-k 50, float32; prefill included. Batch 1 is GPT-2 124M;
batch 16 is a GPT-2 of 6 layers and width 512, so that a burst stays short on two cores.

    python benchmarks/decode.py
    python benchmarks/decode.py --batch 16 --compute-dtype float32 bfloat16
"""

import time
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from functools import partial

import numpy as np
from gpt2_weights import Shape, gptjax_config, gptjax_params, random_weights, transformers_config
from harness import Burst, Worker, interleave, start
from results import bar, check_agreement, command_line, installed, is_quiet, parse, publish, ratio, summarise

GPT2_124M = Shape(layers=12, width=768, heads=12, vocab_size=50257, positions=1024)
GPT2_6X512 = Shape(layers=6, width=512, heads=8, vocab_size=50257, positions=1024)
TINY = Shape(layers=2, width=64, heads=2, vocab_size=512, positions=64)
BARS = {1: 1.3, 16: 1.8}
PROMPT, NEW_TOKENS, TOP_K = 64, 128, 50
PEER = "transformers"
# The largest gap of a logit that different orders of summation explain; bfloat16 keeps three digits.
AGREEMENT = {"float32": 1e-4, "bfloat16": 2e-2}


def prompts(shape: Shape, batch: int, length: int) -> np.ndarray:
    """Random prompts int32 `[batch, length]`."""
    return np.random.default_rng(1).integers(0, shape.vocab_size, (batch, length), np.int32)


def build_gptjax(shape: Shape, batch: int, prompt: int, new_tokens: int, dtype: str):
    """gptjax's decoding, warm: (work, facts)."""
    import jax

    from gptjax.generation.decode import decode, request_keys
    from gptjax.generation.sampling import SamplingConfig
    from gptjax.models.functional import ModelDefinition, layer_parameters
    from gptjax.models.heads import LanguageModel

    jax.config.update("jax_enable_compilation_cache", False)  # its first call is to be compiled
    definition = ModelDefinition(LanguageModel, gptjax_config(shape, compute_dtype=dtype))
    params = jax.tree.map(jax.numpy.asarray, gptjax_params(random_weights(shape), shape.layers))
    tokens = prompts(shape, batch, prompt)
    sampling = SamplingConfig(temperature=1.0, top_k=TOP_K, max_new_tokens=new_tokens)
    # Laid out once, as the engine of the chat has them.
    layers = jax.jit(partial(layer_parameters, rows=batch))(params)
    program = jax.jit(partial(decode, definition, sampling=sampling, stop_sequences=(), pad_id=0))
    bursts = 0

    def work():
        nonlocal bursts
        bursts += 1
        keys = request_keys(np.arange(batch) + bursts * batch)
        state = program(params, tokens, np.ones_like(tokens, bool), keys, layers=layers)
        return int(np.asarray(state.mask).sum())

    seconds = []
    for _ in range(2):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    logits = jax.jit(definition.apply)(params, tokens[:1])[0, -1]
    return work, {
        "compile_seconds": seconds[0] - seconds[1],
        "logits": np.asarray(logits)[:64].tolist(),
        "device": jax.devices()[0].device_kind,
    }


def build_transformers(shape: Shape, batch: int, prompt: int, new_tokens: int):
    """`GPT2LMHeadModel.generate`, warm: (work, facts)."""
    import torch
    from transformers import GPT2LMHeadModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GPT2LMHeadModel(transformers_config(shape, bos_token_id=0, eos_token_id=None))
    weights = {f"transformer.{name}": torch.tensor(w) for name, w in random_weights(shape).items()}
    loaded = model.load_state_dict(weights, strict=False)
    assert not loaded.unexpected_keys and set(loaded.missing_keys) <= {"lm_head.weight"}, loaded
    model.tie_weights()
    model.to(device).eval()
    tokens = torch.tensor(prompts(shape, batch, prompt), dtype=torch.long, device=device)
    bursts = 0

    def work():
        nonlocal bursts
        bursts += 1
        torch.manual_seed(bursts)
        with torch.inference_mode():
            out = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=True,
                temperature=1.0,
                top_k=TOP_K,
                top_p=1.0,
                max_new_tokens=new_tokens,
                pad_token_id=0,
            )
        return out[:, prompt:].numel()

    work()
    with torch.inference_mode():
        logits = model(tokens[:1]).logits[0, -1, :64].tolist()
    return work, {"compile_seconds": 0.0, "logits": logits, "device": device}


def start_workers(batch: int, options: Namespace) -> list[Worker]:
    """The processes for one batch size, started one after the other."""
    size = (TINY, batch, 8, 8) if options.quick else (shape_of(batch), batch, PROMPT, NEW_TOKENS)
    builds = {}
    if installed(PEER) and installed("torch"):
        builds[f"{PEER}, batch {batch}"] = partial(build_transformers, *size)
    for dtype in options.compute_dtype:
        builds[f"gptjax {dtype}, batch {batch}"] = partial(build_gptjax, *size, dtype)
    return start(builds, options.threads)


def shape_of(batch: int) -> Shape:
    """The model that is decoded at a batch size."""
    return GPT2_124M if batch == 1 else GPT2_6X512


def row(name: str, figures: dict, facts: dict, peer: str, quiet: bool) -> dict:
    """One implementation's line of the table."""
    one = figures[name]
    return {
        "implementation": name,
        "tokens/s": 1 / one.seconds_per_unit,
        "slowest": 1 / one.slowest,
        "fastest": 1 / one.fastest,
        "CPU ms/token": 1e3 * one.cpu_seconds_per_unit,
        f"speed / {PEER}": ratio(figures[peer], one, quiet) if peer in figures else None,
        "compile s": facts[name]["compile_seconds"],
        "peak MiB": one.peak_mib,
        "kept": f"{one.kept} of {one.kept + one.dropped}",
    }


def run_batch(batch: int, options: Namespace) -> tuple[list[Burst], list[dict], dict]:
    """Times one batch size: (bursts, rows, facts)."""
    workers = start_workers(batch, options)
    facts = {worker.name: worker.facts for worker in workers}
    check_agreement(facts, "logits", AGREEMENT)
    bursts = interleave([worker.burst for worker in workers], options.bursts, options.limit)
    for worker in workers:
        worker.close()
    figures = summarise(bursts)
    quiet = is_quiet(figures.values())
    return bursts, [row(name, figures, facts, f"{PEER}, batch {batch}", quiet) for name in figures], facts


def options() -> ArgumentParser:
    """The command line."""
    parser = command_line(__doc__.splitlines()[0], bursts=4, limit=75)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="prompts decoded together")
    parser.add_argument("--compute-dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    return parser


def main() -> None:
    """Runs the benchmark."""
    chosen = parse(options())
    bursts, rows, facts = [], [], {}
    for batch in chosen.batch:
        some_bursts, some_rows, some_facts = run_batch(batch, chosen)
        bursts, rows, facts = bursts + some_bursts, rows + some_rows, facts | some_facts
    speeds = {one["implementation"]: one[f"speed / {PEER}"] for one in rows}
    bars = [
        bar(f"speed / {PEER}, {name}", speeds[name], limit, at_least=True)
        for batch, limit in BARS.items()
        if (name := f"gptjax float32, batch {batch}") in speeds
    ]
    shapes = {f"batch {batch}": asdict(shape_of(batch)) for batch in chosen.batch}
    publish("decode", chosen, bursts, rows, bars, facts=facts, shapes=shapes)


if __name__ == "__main__":
    main()
