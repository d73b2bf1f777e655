"""Fine-tuning on a task (Radford et al. 2018, sections 3.2 and 3.3; Devlin et al. 2018, section 4).

A pretrained BERT is read at [CLS], a GPT at its extract token, with language modelling beside the task.
Read top to bottom: configuration, model, loss, run.
Legend: B examples, S sequences of an example, L length, K classes, V vocabulary.
"""

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np

from gptjax.config import ConfigError, configclass
from gptjax.data.mixture import Mixture
from gptjax.data.quality import BadRows, DataError
from gptjax.data.task_inputs import Form, decoder_frame, encoder_frame, read_examples, task_rows
from gptjax.evaluation.batches import summed
from gptjax.losses.transfer import auxiliary_loss, task_loss
from gptjax.models.classifier import Classifier, ClassifierConfig
from gptjax.models.encoder import EncoderConfig
from gptjax.models.flops import classifier_flops_per_token
from gptjax.models.functional import ModelDefinition
from gptjax.ranges import BelowOne, Count, Natural, NonNegative, Seed
from gptjax.runs import mark_done, open_run, stage_done
from gptjax.sharding.mesh import MeshConfig, check_batch, make_mesh, place
from gptjax.stages.handover import TrainedModel, check_bases, load_model, save_model
from gptjax.stages.keys import stage_key
from gptjax.stages.sharded import compile_step, create_state
from gptjax.training.loop import LoopSettings, run_loop
from gptjax.training.metrics import seconds_spent
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import make_train_step

TASK_TOKENS = 3  # start, delimiter, extract: new rows of a GPT's embedding


@configclass
class ClassifyConfig:
    """Fine-tuning on labelled examples.

    Attributes:
        base: run folder of a BERT or a language model.
        source: "ratings" (are they positive or negative), or a path to JSONL with `text`, `label`, and
            `second` or `answers`.
        form: "classification", "entailment", "similarity" or "choice", see `data/task_inputs.py`.
        clear: how far from 0 the mean vote of a rated text lies, or it is left out.
        examples: how many of the training examples are used; None takes all.
        fresh: start from new weights; of the base only shape and tokenizer are used.
        lm_weight: of language modelling beside the task, 0.5 for GPT-1; a BERT must have 0.
        optimizer, mesh: see their classes.
        dropout: rate, also on what the head reads.
        length: tokens per sequence; longer texts are cut.
        batch_size: examples per update.
        steps, accumulate, save_every, seed: as in pretraining.
        eval_every: steps between measurements on the held-out examples; 0 measures only at the end.
    """

    base: str = ""
    source: str = "ratings"
    form: Form = "classification"
    clear: NonNegative = 1.0
    examples: Count | None = None
    fresh: bool = False
    lm_weight: NonNegative = 0.0
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    dropout: BelowOne = 0.1
    length: Count
    batch_size: Count
    steps: Count
    accumulate: Count = 1
    save_every: Count = 500
    eval_every: Natural = 0
    seed: Seed = 0

    def __post_init__(self):
        check_batch(self.batch_size, self.mesh, self.accumulate)


def check(config: ClassifyConfig) -> None:
    """Raises ConfigError for a base that is not there or cannot read the rows."""
    check_bases({"length": config.length}, {"base": (config.base, "language", "masked", "encoder")})


def load_base(config: ClassifyConfig, mesh) -> tuple[TrainedModel, bool]:
    """The pretrained model, and whether it is a BERT.

    Raises:
        ConfigError: as `check`, or a BERT is to model language.
    """
    check(config)
    base = load_model(config.base, mesh)
    is_bert = isinstance(base.definition.config, EncoderConfig)
    if is_bert and config.lm_weight:
        raise ConfigError(f"{config.base} is a BERT, which models no next token: set lm_weight to 0")
    return base, is_bert


def with_trunk(fresh, base: TrainedModel):
    """A classifier's fresh parameters with those of the base; new rows of its embedding stay fresh."""
    trunk = {name: base.params[name] for name in ("encoder", "pooler") if name in base.params}
    trunk = trunk or {"language": base.params}

    def laid_over(new, old):
        return jax.lax.dynamic_update_slice(new, old, (0,) * new.ndim)

    return fresh | jax.tree.map(laid_over, {name: fresh[name] for name in trunk}, trunk)


def make_classify_loss(definition: ModelDefinition, lm_weight: float):
    """`loss(params, batch, total, key) -> (scalar, metrics)`: the task's plus `lm_weight` that of language.

    It is additive over rows. The batch is of `task_rows`; `total` is the count of `count_examples` over the
    whole batch.
    """

    def loss_fn(params, batch, total, key):
        model, ends = definition.bind(params), batch["ends"]
        logits, hidden = model(batch["tokens"], ends, token_types=batch["token_types"], key=key)
        loss, metrics = task_loss(logits, batch["labels"], batch["weights"], denominator=total)
        if not lm_weight:
            return loss, metrics
        matrix, transposed = model.language.output_matrix()
        language = auxiliary_loss(
            hidden,
            batch["tokens"],
            ends,
            batch["weights"],
            matrix,
            transposed=transposed,
            denominator=total,
            matmul_dtype=definition.config.trunk.compute_dtype,
        )
        return loss + lm_weight * language, metrics | {"language_loss": language}

    return loss_fn


def count_examples(batch) -> jax.Array:
    """Examples of the whole batch."""
    return batch["weights"].sum()


def classes_of(config: ClassifyConfig, train, heldout) -> int | None:
    """K, None for a choice. Raises DataError when there is nothing to tell apart."""
    if config.form == "choice":
        return None
    known = {example.label for example in train}
    unknown = {example.label for example in heldout} - known
    if len(known) < 2 or unknown:
        raise DataError(
            f"{config.source} has the labels {sorted(known)} to train on and {sorted(unknown)} to measure "
            "alone: add examples"
        )
    return max(known) + 1


def run(config: ClassifyConfig, folder: Path) -> None:
    """Fine-tunes the base model and leaves the classifier in `folder`."""
    folder = open_run(folder, config)
    if stage_done(folder):
        print(f"classify: already done in {folder}")
        return
    started, mesh = time.monotonic() - seconds_spent(folder), make_mesh(config.mesh)
    base, is_bert = load_base(config, mesh)
    bad_rows, tokenizer, trunk = BadRows(), base.tokenizer, base.definition.config
    train, heldout = read_examples(config.source, config.form, config.clear, bad_rows)
    classes = classes_of(config, train, heldout)
    if config.examples is not None:
        order = np.random.default_rng(config.seed).permutation(len(train))
        train = [train[index] for index in order[: config.examples]]
    frame = encoder_frame(tokenizer) if is_bert else decoder_frame(tokenizer, trunk.vocab_size)
    (rows, cut), (heldout_rows, _) = (
        task_rows(part, config.form, tokenizer, frame, config.length) for part in (train, heldout)
    )
    print(f"classify: {len(train):,} examples, {cut} cut to {config.length} tokens; {bad_rows.summary()}")
    mixture = Mixture({"examples": rows}, {"examples": 1.0}, config.batch_size, config.seed)

    vocab_size = trunk.vocab_size + (0 if is_bert else TASK_TOKENS)
    trained = dataclasses.replace(trunk, vocab_size=vocab_size, dropout=config.dropout)
    definition = ModelDefinition(Classifier, ClassifierConfig(trunk=trained, classes=classes))
    optimizer = make_optimizer(config.optimizer, config.steps, definition.axes)
    key = stage_key(config.seed, "classify")
    params = jax.jit(definition.initialise)(jax.random.fold_in(key, 0))
    params = params if config.fresh else with_trunk(params, base)
    state = create_state(definition, optimizer, mesh, params=params)
    loss_fn = make_classify_loss(definition, config.lm_weight)
    step = make_train_step(loss_fn, count_examples, optimizer, accumulate=config.accumulate)

    def batch_at(number):
        return place(mixture.batch_at(number), mesh)

    tokens_per_step = config.batch_size * rows["tokens"].shape[1] * config.length
    settings = LoopSettings(
        stage="classify",
        folder=folder,
        steps=config.steps,
        save_every=config.save_every,
        eval_every=config.eval_every,
        identity={"tokenizer": tokenizer.hash, "base": base.digest},
        tokens_per_step=tokens_per_step,
        flops_per_token=classifier_flops_per_token(definition, config.length, bool(config.lm_weight)),
        devices=config.mesh.size,
        started=started,
    )
    sums = jax.jit(lambda params, batch: loss_fn(params, batch, 1.0, None)[1])

    def measure(state):
        totals = summed(sums, state.params, heldout_rows, config.batch_size)
        return {f"heldout_{name}": total / len(heldout) for name, total in totals.items()}

    run_key = jax.random.fold_in(key, 1)
    state = run_loop(state, compile_step(step, mesh), batch_at, run_key, settings, measure)

    figures = {name.removeprefix("heldout_"): value for name, value in measure(state).items()}
    figures["commonest_label"] = float(np.bincount(heldout_rows["labels"]).max() / len(heldout))
    figures["examples"] = len(heldout)
    print(
        f"classify: held-out accuracy {figures['accuracy']:.4f} (always the commonest label "
        f"{figures['commonest_label']:.4f}), {figures['loss']:.4f} nats per example",
        flush=True,
    )
    final = dataclasses.replace(definition.config, trunk=dataclasses.replace(trained, dropout=trunk.dropout))
    save_model(folder, "classifier", final, state.params, tokenizer)
    seconds, tokens = time.monotonic() - started, config.steps * tokens_per_step
    mark_done(folder, {"seconds": seconds, "tokens": tokens, "heldout": figures})
