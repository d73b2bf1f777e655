"""BERT's pre-training: hidden tokens and next sentences (Devlin et al. 2018, section 3.1).

Read top to bottom: configuration, data, loss, run.
Legend: B batch, L length, P predictions of a row, D model width, V vocabulary.
"""

import time
import zlib
from pathlib import Path

import jax
import numpy as np

from gptjax.config import configclass
from gptjax.data.corpora import Document, read_documents
from gptjax.data.masking import MaskingConfig, masked_rows, sentences
from gptjax.data.mixture import Mixture
from gptjax.data.quality import BadRows
from gptjax.data.tokenizers import BERT_SPECIALS
from gptjax.data.wordpiece import WordPieceTokenizer
from gptjax.evaluation.batches import summed
from gptjax.evaluation.perplexity import first_bytes
from gptjax.losses.masked_lm import gather_places, masked_lm_loss
from gptjax.models.encoder import EncoderConfig
from gptjax.models.flops import masked_flops_per_token
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import MaskedLanguageModel
from gptjax.ranges import Count, Natural, Seed, SomeWeights
from gptjax.runs import mark_done, open_run, stage_done
from gptjax.sharding.mesh import MeshConfig, check_batch, make_mesh, place
from gptjax.stages.handover import save_model
from gptjax.stages.keys import stage_key
from gptjax.stages.pretrain_data import weighted_texts
from gptjax.stages.sharded import compile_step, create_state
from gptjax.stages.tokenizer import run_tokenizer
from gptjax.training.loop import LoopSettings, run_loop
from gptjax.training.metrics import seconds_spent
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import make_train_step


@configclass
class MaskedConfig:
    """Pre-training of an encoder on a weighted mixture of texts.

    Attributes:
        model: the encoder; its vocab_size is the tokenizer's.
        corpora: source -> weight, as in pretraining.
        masking: how rows are made and hidden, see its class.
        next_sentence: whether the loss has the next-sentence part.
        optimizer, mesh: see their classes.
        tokenizer: a SentencePiece model with [CLS], [SEP] and [MASK], a `vocab.txt`, or a WordPiece's
            `tokenizer.json`; None trains a SentencePiece model on the training text.
        lower_case: of a `vocab.txt`, which does not say.
        length: tokens per row.
        batch_size, steps, accumulate, save_every, seed: as in pretraining.
        eval_every: steps between measurements on a batch of held-out rows; 0 measures only at the end.
        heldout_bytes: how much of each source's held-out text is measured.
    """

    model: EncoderConfig
    corpora: SomeWeights
    masking: MaskingConfig = MaskingConfig()
    next_sentence: bool = True
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    tokenizer: str | None = None
    lower_case: bool = True
    length: Count
    batch_size: Count
    steps: Count
    accumulate: Count = 1
    save_every: Count = 500
    eval_every: Natural = 100
    heldout_bytes: Count = 400_000
    seed: Seed = 0

    def __post_init__(self):
        check_batch(self.batch_size, self.mesh, self.accumulate)
        if self.length > self.model.context_length:
            raise ValueError(
                f"length = {self.length} is longer than model.context_length = {self.model.context_length}: "
                "lower it, or raise model.context_length"
            )


def find_tokenizer(config: MaskedConfig, folder: Path, documents: dict[str, list[Document]]):
    """The run's tokenizer: the configured WordPiece, or a SentencePiece model as in pretraining.

    Raises:
        ConfigError: it has another number of ids than the model.
    """
    named, path = config.tokenizer, Path(config.tokenizer or "")
    if path.suffix == ".txt":
        named = WordPieceTokenizer.from_vocab(path, lower_case=config.lower_case)
    elif path.suffix == ".json":
        named = WordPieceTokenizer.load(path)
    texts, note = weighted_texts(documents, config.corpora), str(path)
    return run_tokenizer(folder, texts, config.model.vocab_size, named, note, BERT_SPECIALS)


def rows_of(texts: list[str], tokenizer, config: MaskedConfig, *purpose: str) -> dict[str, np.ndarray]:
    """The hidden rows of texts; `purpose` gives them draws of their own."""
    documents = [[tokenizer.encode(sentence) for sentence in sentences(text)] for text in texts]
    seed = [config.seed, *(zlib.crc32(word.encode()) for word in purpose)]
    return masked_rows(documents, tokenizer, config.length, config.masking, seed)


def make_masked_loss(definition: ModelDefinition, next_sentence: bool = True):
    """`loss(params, batch, totals, key) -> (scalar, metrics)`, additive over rows.

    The batch is of `masked_rows`; `totals` are the counts of `count_predictions` over the whole batch.
    """

    def loss_fn(params, batch, totals, key):
        model = definition.bind(params)
        inputs = {name: batch[name] for name in ("token_types", "segment_ids")}
        hidden_BxLxD = model.hidden(batch["tokens"], key=key, **inputs)
        return masked_lm_loss(
            model.token_logits(gather_places(hidden_BxLxD, batch["places"])),
            batch["targets"],
            batch["place_weights"],
            model.sentence_logits(hidden_BxLxD),
            batch["labels"],
            batch["row_weights"],
            next_sentence=next_sentence,
            denominators=totals,
        )

    return loss_fn


def count_predictions(batch) -> dict[str, jax.Array]:
    """Hidden tokens and rows of the whole batch."""
    return {"places": batch["place_weights"].sum(), "rows": batch["row_weights"].sum()}


def evaluate(sums, params, rows: dict[str, np.ndarray], batch_size: int) -> dict[str, float]:
    """The metrics' means over rows, and the share of the commoner next-sentence label."""
    totals = summed(sums, params, rows, batch_size)
    places, count = float(rows["place_weights"].sum()), len(rows["labels"])
    means = {n: total / (places if n.startswith("masked") else count) for n, total in totals.items()}
    del means["loss"]
    random = float(rows["labels"].mean())
    return means | {"commoner_label": max(random, 1 - random), "rows": count}


def run(config: MaskedConfig, folder: Path) -> None:
    """Trains the encoder and leaves it, its tokenizer and its figures in `folder`."""
    folder = open_run(folder, config)
    if stage_done(folder):
        print(f"masked: already done in {folder}")
        return
    started, mesh = time.monotonic() - seconds_spent(folder), make_mesh(config.mesh)
    bad_rows = BadRows()
    train = {name: read_documents(name, split="train", bad_rows=bad_rows) for name in config.corpora}
    print(f"masked: {bad_rows.summary()}")
    tokenizer = find_tokenizer(config, folder, train)
    rows = {n: rows_of([d.text for d in texts], tokenizer, config, "train", n) for n, texts in train.items()}
    heldout = {}
    for name in config.corpora:
        texts = first_bytes([d.text for d in read_documents(name, split="heldout")], config.heldout_bytes)
        heldout[name] = rows_of(texts, tokenizer, config, "heldout", name)
    mixture = Mixture(rows, config.corpora, config.batch_size, config.seed)

    definition = ModelDefinition(MaskedLanguageModel, config.model)
    optimizer = make_optimizer(config.optimizer, config.steps, definition.axes)
    key = stage_key(config.seed, "masked")
    state = create_state(definition, optimizer, mesh, key=jax.random.fold_in(key, 0))
    loss_fn = make_masked_loss(definition, config.next_sentence)
    step = make_train_step(loss_fn, count_predictions, optimizer, accumulate=config.accumulate)
    counts = ", ".join(f"{len(r['labels']):,} of {name}" for name, r in rows.items())
    print(f"masked: {definition.parameter_count:,} parameters, rows: {counts}", flush=True)

    def batch_at(number):
        return place(mixture.batch_at(number), mesh)

    tokens_per_step = config.batch_size * config.length
    settings = LoopSettings(
        stage="masked",
        folder=folder,
        steps=config.steps,
        save_every=config.save_every,
        eval_every=config.eval_every,
        identity={"tokenizer": tokenizer.hash},
        tokens_per_step=tokens_per_step,
        flops_per_token=masked_flops_per_token(definition, config.length, config.masking.max_predictions),
        devices=config.mesh.size,
        started=started,
    )
    sums = jax.jit(lambda params, batch: loss_fn(params, batch, {"places": 1.0, "rows": 1.0}, None)[1])

    def watch(state):
        found = {}
        for name, r in heldout.items():
            glance = {part: array[: 4 * config.batch_size] for part, array in r.items()}
            found[f"heldout/{name}"] = evaluate(sums, state.params, glance, config.batch_size)["masked_loss"]
        return found

    run_key = jax.random.fold_in(key, 1)
    state = run_loop(state, compile_step(step, mesh), batch_at, run_key, settings, watch)

    figures = {name: evaluate(sums, state.params, r, config.batch_size) for name, r in heldout.items()}
    for name, f in figures.items():
        print(
            f"masked: held-out {name}: {f['masked_loss']:.3f} nats per hidden token, "
            f"{f['masked_accuracy']:.3f} right; next sentence {f['next_sentence_accuracy']:.3f} right "
            f"(always the commoner label {f['commoner_label']:.3f})",
            flush=True,
        )
    save_model(folder, "masked", config.model, state.params, tokenizer)
    seconds, tokens = time.monotonic() - started, config.steps * tokens_per_step
    mark_done(folder, {"seconds": seconds, "tokens": tokens, "heldout": figures})
