"""Pretraining: text to a language model (Radford et al. 2018, section 3.1; Brown et al. 2020, section 2).

Read top to bottom: configuration, data, loss, run.
Legend: B batch, L length, D model width, V vocabulary.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from gptjax.config import ConfigError, configclass
from gptjax.data.corpora import Document, read_documents
from gptjax.data.mixture import Mixture
from gptjax.data.packing import lm_batch, pack_documents
from gptjax.data.quality import BadRows
from gptjax.data.tokenizers import Tokenizer
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
from gptjax.ranges import Count, Natural, NonNegative, Seed, SomeWeights
from gptjax.runs import mark_done, open_run, stage_done
from gptjax.sharding.mesh import MeshConfig, check_batch, make_mesh, place
from gptjax.stages.handover import save_model
from gptjax.stages.keys import stage_key
from gptjax.stages.language_loss import PLAIN, count_tokens, make_language_loss, make_sum_loss, select
from gptjax.stages.sharded import compile_step, create_state
from gptjax.training.loop import LoopSettings, run_loop
from gptjax.training.metrics import seconds_spent
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import make_train_step


@configclass
class PretrainConfig:
    """Pretraining on a weighted mixture of texts.

    Attributes:
        model: the decoder; its vocab_size is the tokenizer's.
        corpora: source -> weight. A source is "shakespeare", "pydoc", "ratings", or a path to a .txt or
            .jsonl file (gzip too) or a folder of them.
        optimizer, mesh: see their classes.
        tokenizer: path of a SentencePiece model; None trains one on the training text.
        length: tokens per row.
        batch_size: rows per update.
        steps: updates.
        accumulate: micro-batches per update.
        z_loss: coefficient of the squared log-normaliser (Chowdhery et al. 2022, section 5).
        loss_chunk: tokens whose logits are held at once.
        save_every: steps between checkpoints.
        eval_every: steps between measurements on a little held-out text; 0 measures only at the end.
        heldout_bytes: how much of each source's held-out text is measured.
        seed: root of all randomness.
    """

    model: DecoderConfig
    corpora: SomeWeights
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    tokenizer: str | None = None
    length: Count
    batch_size: Count
    steps: Count
    accumulate: Count = 1
    z_loss: NonNegative = 0.0
    loss_chunk: Count = 1024
    save_every: Count = 500
    eval_every: Natural = 100
    heldout_bytes: Count = 1_000_000
    seed: Seed = 0

    def __post_init__(self):
        check_batch(self.batch_size, self.mesh, self.accumulate)
        if self.length > self.model.context_length:
            raise ValueError(
                f"length = {self.length} is longer than model.context_length = {self.model.context_length}"
            )


def train_tokenizer(
    config, folder: Path, documents: dict[str, list[Document]], more_specials: tuple[str, ...] = ()
) -> Tokenizer:
    """The run's tokenizer: the stored one, the configured one, or one trained on the training text alone.

    Args:
        config: of a pretraining, whose tokenizer, model.vocab_size and corpora are read.
        folder: where it is stored.
        documents: of each source.
        more_specials: see `Tokenizer.train`.

    Raises:
        ConfigError: the stored or the configured one has another number of ids than the model.
    """
    stored = folder / "tokenizer.model"
    found = stored if stored.exists() else config.tokenizer
    if found:
        tokenizer = Tokenizer.load(found)
        check_vocabulary(tokenizer, found, config.model.vocab_size)
        if found == stored:
            return tokenizer
    else:
        texts = weighted_texts(documents, config.corpora)
        tokenizer = Tokenizer.train(texts, config.model.vocab_size, more_specials)
    # Renamed when whole: a kill while it is written must not leave half a tokenizer behind.
    partial = stored.with_suffix(".partial")
    tokenizer.save(partial)
    partial.rename(stored)
    return tokenizer


def check_vocabulary(tokenizer, path: str | Path, vocab_size: int) -> None:
    """Raises ConfigError when the tokenizer of `path` has another number of ids than the model."""
    if tokenizer.vocab_size != vocab_size:
        raise ConfigError(
            f"the tokenizer {path} has {tokenizer.vocab_size} ids, but model.vocab_size = {vocab_size}: set "
            f"model.vocab_size to {tokenizer.vocab_size}, or name another tokenizer"
        )


def weighted_texts(documents: dict[str, list[Document]], weights: dict[str, float]) -> Iterator[str]:
    """The texts of each source, repeated so that the tokenizer meets the sources about as the model will."""
    density = {
        name: weights[name] / max(1, sum(len(d.text) for d in texts)) for name, texts in documents.items()
    }
    for name, texts in documents.items():
        for _ in range(round(density[name] / min(density.values()))):
            yield from (d.text for d in texts)


def token_rows(config: PretrainConfig, documents: dict[str, list[Document]], tokenizer, folder: Path):
    """One memory-mapped int32 array `[rows, length + 1]` per source, written once per run."""
    rows = {}
    for index, (source, texts) in enumerate(documents.items()):
        file = folder / "tokens" / f"{index}.npy"
        if not file.exists():
            ids = [tokenizer.encode(d.text) for d in texts]
            packed, dropped = pack_documents(ids, config.length + 1, tokenizer.end_of_text_id)
            print(f"pretrain: {source}: {packed.size:,} tokens, {dropped} in the last partial row left out")
            file.parent.mkdir(exist_ok=True)
            partial = file.with_suffix(".partial")
            with partial.open("wb") as out:
                np.save(out, packed)
            partial.rename(file)
        rows[source] = np.load(file, mmap_mode="r")
    return rows


def glance_rows(heldout: dict[str, list[Document]], tokenizer: Tokenizer, config: PretrainConfig):
    """A batch of rows of each source's held-out text, for the curves."""
    limit = 3 * config.batch_size * config.length
    return {
        name: heldout_rows(first_bytes([d.text for d in documents], limit), tokenizer, config.length)
        for name, documents in heldout.items()
    }


def evaluate(sum_loss, params, config: PretrainConfig, tokenizer, train, heldout) -> dict:
    """Loss, bits per byte and the compressors' bits per byte on each source's held-out text."""
    report = {}
    for source, documents in heldout.items():
        texts = first_bytes([d.text for d in documents], config.heldout_bytes)
        rows = heldout_rows(texts, tokenizer, config.length)
        loss = mean_loss(sum_loss, params, rows, config.batch_size)
        bits = bits_per_byte(loss, float(rows["loss_mask"].sum()), texts)
        compressors = compressor_bits_per_byte([d.text for d in train[source]], texts)
        report[source] = {"loss": loss, "bits_per_byte": bits, **compressors}
        print(
            f"pretrain: held-out {source}: {loss:.3f} nats per token, {bits:.3f} bits per byte "
            f"(xz {compressors['xz']:.3f}, bz2 {compressors['bz2']:.3f})",
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
    tokenizer = train_tokenizer(config, folder, train)
    rows = token_rows(config, train, tokenizer, folder)
    mixture = Mixture(rows, config.corpora, config.batch_size, config.seed)

    definition = ModelDefinition(LanguageModel, config.model)
    optimizer = make_optimizer(config.optimizer, config.steps, definition.axes)
    key = stage_key(config.seed, "pretrain")
    state = create_state(definition, optimizer, mesh, key=jax.random.fold_in(key, 0))
    loss_fn = make_language_loss(definition, z_loss=config.z_loss, chunk=config.loss_chunk)
    step = make_train_step(loss_fn, count_tokens, optimizer, accumulate=config.accumulate)
    tokens_per_step = config.batch_size * config.length
    print(
        f"pretrain: {definition.parameter_count:,} parameters, {tokens_per_step:,} tokens per step",
        flush=True,
    )

    def batch_at(number):
        rows = mixture.batch_at(number, jax.process_index(), jax.process_count())
        return place(select(lm_batch(rows), PLAIN), mesh)

    settings = LoopSettings(
        stage="pretrain",
        folder=folder,
        steps=config.steps,
        save_every=config.save_every,
        eval_every=config.eval_every,
        identity={"tokenizer": tokenizer.hash},
        tokens_per_step=tokens_per_step,
        flops_per_token=matmul_flops_per_token(definition, config.length),
        devices=config.mesh.size,
        started=started,
    )
    sum_loss = make_sum_loss(definition)
    glance = glance_rows(heldout, tokenizer, config)

    def watch(state):
        losses = {n: mean_loss(sum_loss, state.params, rows, config.batch_size) for n, rows in glance.items()}
        return {f"heldout/{name}": loss for name, loss in losses.items()}

    run_key = jax.random.fold_in(key, 1)
    state = run_loop(state, compile_step(step, mesh), batch_at, run_key, settings, watch)

    figures = evaluate(sum_loss, state.params, config, tokenizer, train, heldout)
    save_model(folder, "language", config.model, state.params, tokenizer)
    seconds, tokens = time.monotonic() - started, config.steps * tokens_per_step
    mark_done(folder, {"seconds": seconds, "tokens": tokens, "heldout": figures})
