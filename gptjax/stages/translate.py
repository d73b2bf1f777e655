"""Translation: sentence pairs to an encoder-decoder (Vaswani et al. 2017, sections 5 and 6).

Read top to bottom: configuration, data, loss, evaluation, run.
Legend: B batch, L length, D model width, V vocabulary.
"""

import math
import re
import time
from pathlib import Path
from typing import Literal

import jax

from gptjax.config import ConfigError, configclass
from gptjax.data.parallel import (
    PairBatches,
    SentencePair,
    needed_length,
    pair_rows,
    read_pairs,
    split_pairs,
    token_pairs,
)
from gptjax.data.quality import BadRows
from gptjax.errors import require
from gptjax.evaluation.bleu import BleuTokenizer, corpus_bleu
from gptjax.evaluation.perplexity import mean_loss
from gptjax.generation.beam import BeamConfig
from gptjax.generation.translator import Translator
from gptjax.losses.lm import linear_cross_entropy
from gptjax.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from gptjax.models.flops import translation_flops_per_token
from gptjax.models.functional import ModelDefinition
from gptjax.ranges import BelowOne, Count, Natural, Seed
from gptjax.runs import mark_done, open_run, stage_done, write_jsonl_atomic
from gptjax.sharding.mesh import MeshConfig, check_batch, make_mesh, place
from gptjax.stages.handover import save_model
from gptjax.stages.keys import stage_key
from gptjax.stages.language_loss import count_tokens
from gptjax.stages.sharded import compile_step, create_state
from gptjax.stages.tokenizer import run_tokenizer
from gptjax.training.averaging import average_checkpoints
from gptjax.training.checkpoint import Checkpoints
from gptjax.training.loop import LoopSettings, run_loop
from gptjax.training.metrics import seconds_spent
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import make_train_step

GREEDY = BeamConfig(beams=1)


@configclass
class TranslateConfig:
    """Training of a translator on sentence pairs.

    Attributes:
        model: the encoder-decoder; its vocab_size is the tokenizer's.
        pairs: a JSONL or TSV file of sentence pairs (gzip too), or a folder of them.
        source, target: the names of the two languages' fields or columns.
        leave_out: a regular expression; pairs of which a side holds it are left out. "" leaves none out.
        optimizer, mesh: see their classes.
        label_smoothing: part of the target's probability that goes to other tokens; 0.1 in the paper.
        smooth_over: to which: "others" (the authors' code) or "all", see `smoothing_mass`.
        tokenizer: path of a SentencePiece model of both languages; None trains one on the training pairs.
        lengths: ascending; a pair is padded to the first of these that holds it, one longer than the last is
            left out.
        batch_tokens: slots of the targets of a batch, padding included: a multiple of every length.
        steps: updates.
        accumulate: micro-batches per update.
        average: the model is the mean of this many last checkpoints; 5 (base) or 20 (big) in the paper.
        search: see `BeamConfig`.
        bleu_tokenizer: how BLEU cuts words: "zh" for Chinese targets, "13a" for European ones.
        translated: held-out pairs that are translated, in an order that does not depend on their length.
        save_every: steps between checkpoints.
        eval_every: steps between measurements of the held-out loss; 0 measures only at the end.
        seed: root of all randomness.
    """

    model: EncoderDecoderConfig
    pairs: str
    source: str
    target: str
    leave_out: str = ""
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    label_smoothing: BelowOne = 0.1
    smooth_over: Literal["others", "all"] = "others"
    tokenizer: str | None = None
    lengths: tuple[Count, ...] = (32, 64)
    batch_tokens: Count
    steps: Count
    accumulate: Count = 1
    average: Count = 5
    search: BeamConfig = BeamConfig()
    bleu_tokenizer: BleuTokenizer = "13a"
    translated: Count = 300
    save_every: Count = 500
    eval_every: Natural = 0
    seed: Seed = 0

    def __post_init__(self):
        if not self.lengths or list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"lengths = {list(self.lengths)} must rise, and be one at least")
        if self.lengths[-1] > self.model.context_length:
            raise ValueError(
                f"the last of lengths = {self.lengths[-1]} is longer than model.context_length = "
                f"{self.model.context_length}: lower it, or raise model.context_length"
            )
        for length in self.lengths:
            if self.batch_tokens % length:
                raise ValueError(
                    f"batch_tokens = {self.batch_tokens} is not a multiple of the length {length}"
                )
            check_batch(self.batch_tokens // length, self.mesh, self.accumulate)
        try:
            re.compile(self.leave_out)
        except re.error as error:
            raise ValueError(f"leave_out = {self.leave_out!r} is not a regular expression: {error}") from None


def chosen_pairs(config: TranslateConfig) -> list[SentencePair]:
    """The file's pairs without those that `leave_out` names, which are counted."""
    bad_rows = BadRows()
    pairs = read_pairs(config.pairs, config.source, config.target, bad_rows)
    print(f"translate: {bad_rows.summary()}")
    if not config.leave_out:
        return pairs
    kept = [p for p in pairs if not re.search(config.leave_out, f"{p.source}\n{p.target}")]
    print(f"translate: {len(pairs) - len(kept)} of {len(pairs)} pairs hold {config.leave_out!r}: left out")
    return kept


def fitting(pairs: list[SentencePair], config: TranslateConfig, tokenizer, split: str):
    """(pairs that fit in the longest bucket, their ids); the others are counted."""
    encoded = token_pairs(pairs, tokenizer)
    kept = [i for i, ids in enumerate(encoded) if needed_length(ids) <= config.lengths[-1]]
    if not kept:
        raise ConfigError(
            f"no {split} pair of {config.pairs} fits in {config.lengths[-1]} tokens: raise lengths"
        )
    print(f"translate: {len(kept):,} {split} pairs, {len(pairs) - len(kept):,} too long left out", flush=True)
    return [pairs[i] for i in kept], [encoded[i] for i in kept]


def make_translation_loss(definition: ModelDefinition, smoothing: float = 0.0, over: str = "others"):
    """`loss(params, batch, total, key) -> (scalar, metrics)`: masked cross-entropy, additive over rows.

    Args:
        definition: an `EncoderDecoder`.
        smoothing, over: label smoothing; the metric `loss` is without it.

    The batch is that of `pair_rows`, `total` the count of its target tokens with their ends.
    """

    def loss_fn(params, batch, total, key):
        model = definition.bind(params)
        keys = (None, None) if key is None else jax.random.split(key)
        memory_BxLxD = model.encode(batch["sources"], segment_ids=batch["source_mask"], key=keys[0])
        hidden_BxLxD = model.hidden(
            batch["tokens"], memory_BxLxD, source_segment_ids=batch["source_mask"], key=keys[1]
        )
        matrix, transposed = model.output_matrix()
        return linear_cross_entropy(
            hidden_BxLxD,
            matrix,
            batch["targets"],
            batch["loss_mask"],
            transposed=transposed,
            label_smoothing=smoothing,
            smooth_over=over,
            matmul_dtype=definition.config.compute_dtype,
            denominator=total,
        )

    return loss_fn


def evaluate(models: dict, definition, config: TranslateConfig, tokenizer, pairs, loss_of, folder) -> dict:
    """Perplexity of all held-out pairs and BLEU of `translated` of them, greedy and by beam search.

    Writes source, reference and every translation to `samples.jsonl`.

    Args:
        models: name -> parameters.
        loss_of: params -> held-out loss in nats per token.
    """
    pairs = pairs[: config.translated]
    sources, references = [p.source for p in pairs], [p.target for p in pairs]
    samples = [{"source": p.source, "reference": p.target} for p in pairs]
    figures = {"copied": {"bleu": corpus_bleu(sources, references, config.bleu_tokenizer)}}
    print(f"translate: held-out, the source copied: BLEU {figures['copied']['bleu']:.2f}")
    for name, params in models.items():
        loss = loss_of(params)
        figures[name] = {"loss": loss, "perplexity": math.exp(loss)}
        for way, search in {"greedy": GREEDY, "beam": config.search}.items():
            translations = Translator(definition, params, tokenizer, search)(sources)
            figures[name][f"bleu_{way}"] = corpus_bleu(translations, references, config.bleu_tokenizer)
            for sample, translation in zip(samples, translations, strict=True):
                sample[f"{name}_{way}"] = translation
        shown = ", ".join(f"{key} {value:.3f}" for key, value in figures[name].items())
        print(f"translate: held-out, {name}: {shown}", flush=True)
    write_jsonl_atomic(folder / "samples.jsonl", samples)
    return figures


def run(config: TranslateConfig, folder: Path) -> None:
    """Trains the translator and leaves it, its tokenizer, its translations and its figures in `folder`."""
    require("sacrebleu")
    folder = open_run(folder, config)
    if stage_done(folder):
        print(f"translate: already done in {folder}")
        return
    started, mesh = time.monotonic() - seconds_spent(folder), make_mesh(config.mesh)
    split = split_pairs(chosen_pairs(config))
    print(f"translate: {split.familiar} held-out pairs are near-duplicates of training pairs: left out")
    texts = (text for pair in split.train for text in (pair.source, pair.target))
    tokenizer = run_tokenizer(folder, texts, config.model.vocab_size, config.tokenizer)
    _, encoded = fitting(split.train, config, tokenizer, "training")
    heldout, heldout_ids = fitting(split.heldout, config, tokenizer, "held-out")
    end_id = tokenizer.end_of_text_id
    batches = PairBatches(encoded, config.lengths, config.batch_tokens, config.seed, end_id)

    definition = ModelDefinition(EncoderDecoder, config.model)
    optimizer = make_optimizer(config.optimizer, config.steps, definition.axes)
    key = stage_key(config.seed, "translate")
    state = create_state(definition, optimizer, mesh, key=jax.random.fold_in(key, 0))
    loss_fn = make_translation_loss(definition, config.label_smoothing, config.smooth_over)
    step = make_train_step(loss_fn, count_tokens, optimizer, accumulate=config.accumulate)
    print(f"translate: {definition.parameter_count:,} parameters", flush=True)

    def batch_at(number):
        return place(batches.batch_at(number), mesh)

    identity = {"tokenizer": tokenizer.hash}
    settings = LoopSettings(
        stage="translate",
        folder=folder,
        steps=config.steps,
        save_every=config.save_every,
        eval_every=config.eval_every,
        identity=identity,
        tokens_per_step=config.batch_tokens,
        flops_per_token=translation_flops_per_token(definition, batches.mean_length),
        devices=config.mesh.size,
        started=started,
        keep=max(2, config.average),
    )
    rows = pair_rows(heldout_ids, config.lengths[-1], end_id)
    unsmoothed = make_translation_loss(definition)
    sum_loss = jax.jit(lambda params, batch: unsmoothed(params, batch, 1.0, None)[0])
    batch_size = config.batch_tokens // config.lengths[-1]

    def loss_of(params):
        return mean_loss(sum_loss, params, rows, batch_size)

    def watch(state):
        return {f"heldout/{config.source}-{config.target}": loss_of(state.params)}

    run_key = jax.random.fold_in(key, 1)
    state = run_loop(state, compile_step(step, mesh), batch_at, run_key, settings, watch)

    checkpoints = Checkpoints(folder / "checkpoints", identity, settings.keep)
    averaged, steps = average_checkpoints(checkpoints, state, config.average)
    checkpoints.close()
    print(f"translate: the parameters of steps {', '.join(map(str, steps))} are averaged")
    models = {"last": state.params, "averaged": averaged}
    figures = evaluate(models, definition, config, tokenizer, heldout, loss_of, folder)
    save_model(folder, "translation", config.model, averaged, tokenizer)
    seconds, tokens = time.monotonic() - started, config.steps * config.batch_tokens
    mark_done(folder, {"seconds": seconds, "tokens": tokens, "heldout": figures})
