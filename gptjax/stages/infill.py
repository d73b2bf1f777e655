"""Pretraining on blanks: text to a GLM (Du et al. 2021, arXiv 2103.10360, section 2).

Read top to bottom: configuration, data, run.
Legend: B batch, L length, n tokens of a text.
"""

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
from pydantic import Field

from gptjax.config import configclass
from gptjax.data.corpora import Document, read_documents
from gptjax.data.infilling import RESERVED, BlankIds, Blanks, sentence_ends
from gptjax.data.mixture import Mixture
from gptjax.data.packing import pack_documents
from gptjax.data.quality import BadRows, DataError
from gptjax.data.tokenizers import Tokenizer
from gptjax.evaluation.infilling import infilling_figures, make_blank_scores
from gptjax.models.functional import ModelDefinition, matmul_flops_per_token
from gptjax.models.glm import GLM, GLMConfig
from gptjax.ranges import AboveZero, BelowOne, Count, Natural, Positive, Seed, SomeWeights
from gptjax.runs import mark_done, open_run, stage_done
from gptjax.sharding.mesh import MeshConfig, check_batch, make_mesh, place
from gptjax.stages.handover import save_model
from gptjax.stages.keys import stage_key
from gptjax.stages.language_loss import PACKED, count_tokens, make_language_loss, select
from gptjax.stages.pretrain_data import weighted_texts
from gptjax.stages.sharded import compile_step, create_state
from gptjax.stages.tokenizer import run_tokenizer
from gptjax.training.loop import LoopSettings, run_loop
from gptjax.training.metrics import seconds_spent
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import make_train_step

Objectives = Annotated[dict[Literal["token", "sentence", "document"], Positive], Field(min_length=1)]


@configclass
class InfillConfig:
    """Pretraining on the blanks of a weighted mixture of texts.

    Attributes:
        model: the GLM; its vocab_size is the tokenizer's, and the ids that mark blanks are added to it.
        corpora: source -> weight, as in pretraining.
        objectives: kind of blanks -> weight: "token" are spans, "sentence" whole sentences, "document" the
            rest of a text. GLM's largest model has 0.5, 0.3 and 0.2.
        blank_rate: share of the tokens in blanks of the first two kinds.
        shortest_document: least share of a text in the third kind; 1 makes a model that reads from the left.
        optimizer, mesh: see their classes.
        tokenizer: path of a SentencePiece model; None trains one on the training text.
        length: tokens per row, Part A and Part B together.
        batch_size, steps, accumulate, loss_chunk, save_every, seed: as in pretraining.
        eval_every: steps between measurements on one batch of held-out rows; 0 measures only at the end.
        heldout_rows: how many held-out texts of each source are measured.
    """

    model: GLMConfig
    corpora: SomeWeights
    objectives: Objectives = Field(default_factory=lambda: {"token": 0.5, "sentence": 0.3, "document": 0.2})
    blank_rate: Annotated[BelowOne, Field(gt=0)] = 0.15
    shortest_document: AboveZero = 0.5
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    tokenizer: str | None = None
    length: Count
    batch_size: Count
    steps: Count
    accumulate: Count = 1
    loss_chunk: Count = 1024
    save_every: Count = 500
    eval_every: Natural = 100
    heldout_rows: Count = 256
    seed: Seed = 0

    def __post_init__(self):
        check_batch(self.batch_size, self.mesh, self.accumulate)
        if self.length > self.model.context_length:
            raise ValueError(
                f"length = {self.length} is longer than model.context_length = {self.model.context_length}: "
                "lower it, or raise model.context_length"
            )
        if self.length < 8:
            raise ValueError(
                f"length = {self.length} leaves no room for a text and its blanks: use 8 or more"
            )


def make_blanks(config: InfillConfig, tokenizer: Tokenizer) -> Blanks:
    """How the run's texts become rows."""
    return Blanks(
        ids=BlankIds.after(tokenizer.vocab_size),
        separator_id=tokenizer.end_of_text_id,
        ends=sentence_ends(tokenizer),
        length=config.length,
        objectives=config.objectives,
        rate=config.blank_rate,
        shortest_document=config.shortest_document,
    )


def text_rows(
    documents: dict[str, list[Document]], tokenizer: Tokenizer, length: int
) -> dict[str, np.ndarray]:
    """Source -> its texts of `length` tokens, int32 `[rows, length]`, documents joined as in pretraining.

    Raises:
        DataError: a source does not fill one row.
    """
    rows = {}
    for source, texts in documents.items():
        ids = [tokenizer.encode(d.text) for d in texts]
        rows[source], dropped = pack_documents(ids, length, tokenizer.end_of_text_id)
        if not len(rows[source]):
            raise DataError(f"{source} has fewer than the {length} tokens of a row: add text or lower length")
        print(f"infill: {source}: {rows[source].size:,} tokens, {dropped} in the last partial row left out")
    return rows


def heldout_blanks(config: InfillConfig, blanks: Blanks, texts: dict[str, np.ndarray]):
    """Source -> (rows with spans left out, the same blanks read from the left), the same for every seed."""
    return {
        source: blanks.heldout(
            rows[np.linspace(0, len(rows) - 1, min(len(rows), config.heldout_rows)).astype(int)], 0
        )
        for source, rows in texts.items()
    }


def run(config: InfillConfig, folder: Path) -> None:
    """Trains the GLM and leaves it, its tokenizer and its figures in `folder`."""
    folder = open_run(folder, config)
    if stage_done(folder):
        print(f"infill: already done in {folder}")
        return
    started, mesh = time.monotonic() - seconds_spent(folder), make_mesh(config.mesh)
    bad_rows = BadRows()
    train = {name: read_documents(name, split="train", bad_rows=bad_rows) for name in config.corpora}
    heldout = {name: read_documents(name, split="heldout") for name in config.corpora}
    bad_rows.check()
    print(f"infill: {bad_rows.summary()}")
    texts = weighted_texts(train, config.corpora)
    tokenizer = run_tokenizer(folder, texts, config.model.vocab_size, config.tokenizer)
    blanks = make_blanks(config, tokenizer)
    rows = text_rows(train, tokenizer, blanks.text_length)
    mixture = Mixture(rows, config.corpora, config.batch_size, config.seed)

    model = dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size + RESERVED)
    definition = ModelDefinition(GLM, model)
    optimizer = make_optimizer(config.optimizer, config.steps, definition.axes)
    key = stage_key(config.seed, "infill")
    state = create_state(definition, optimizer, mesh, key=jax.random.fold_in(key, 0))
    loss = make_language_loss(definition, chunk=config.loss_chunk)
    step = make_train_step(loss, count_tokens, optimizer, accumulate=config.accumulate)
    tokens_per_step = config.batch_size * config.length
    print(
        f"infill: {definition.parameter_count:,} parameters, {tokens_per_step:,} tokens per step", flush=True
    )

    def batch_at(number):
        numbers = range(number * config.batch_size, (number + 1) * config.batch_size)
        return place(select(blanks.batch(mixture.batch_at(number), numbers, config.seed), PACKED), mesh)

    settings = LoopSettings(
        stage="infill",
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
    scores = make_blank_scores(definition)
    measured = heldout_blanks(config, blanks, text_rows(heldout, tokenizer, blanks.text_length))

    def watch(state):
        glance = {}
        for source, (both, _) in measured.items():
            first = {name: array[: config.batch_size] for name, array in both.items()}
            found = infilling_figures(scores, state.params, first, config.batch_size)
            glance |= {f"heldout/{source}": found["loss"], f"heldout_accuracy/{source}": found["accuracy"]}
        return glance

    state = run_loop(state, compile_step(step, mesh), batch_at, jax.random.fold_in(key, 1), settings, watch)

    figures = {
        source: {
            name: infilling_figures(scores, state.params, rows, config.batch_size)
            for name, rows in (("blanks", both), ("from_left", left))
        }
        for source, (both, left) in measured.items()
    }
    for source, found in figures.items():
        for name, figure in found.items():
            print(
                f"infill: held-out {source}, {name}: {figure['loss']:.3f} nats per token, "
                f"{figure['accuracy']:.1%} of tokens and {figure['exact']:.1%} of blanks right",
                flush=True,
            )
    save_model(folder, "glm", model, state.params, tokenizer)
    seconds, tokens = time.monotonic() - started, config.steps * tokens_per_step
    mark_done(folder, {"seconds": seconds, "tokens": tokens, "heldout": figures})
