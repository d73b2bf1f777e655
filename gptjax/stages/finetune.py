"""Supervised fine-tuning: a language model to an assistant (Ouyang et al. 2022, section 3.5).

Dialogues are written in ChatML, the loss is on what the assistant says, and short dialogues share a row
without seeing each other. Read top to bottom: configuration, data, run.
Legend: B batch, L length.
"""

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from gptjax.config import configclass
from gptjax.data.mixture import Mixture
from gptjax.evaluation.perplexity import even_sample, mean_loss
from gptjax.models.functional import ModelDefinition, matmul_flops_per_token
from gptjax.models.heads import LanguageModel
from gptjax.models.lora import LoraConfig, LoraDefinition
from gptjax.ranges import BelowOne, Count, Natural, Seed, SomeWeights, Weights
from gptjax.runs import mark_done, open_run, stage_done
from gptjax.sharding.mesh import MeshConfig, check_batch, make_mesh, place
from gptjax.stages.adapters import make_adapted_step, merged, save_adapters
from gptjax.stages.comparison import first_turns, greedy_replies, write_comparison
from gptjax.stages.dialogue_rows import dialogue_rows, text_name, text_rows
from gptjax.stages.handover import check_bases, load_model, save_model
from gptjax.stages.keys import stage_key
from gptjax.stages.language_loss import count_tokens, make_language_loss, make_sum_loss
from gptjax.stages.sharded import compile_step, create_state
from gptjax.training.loop import LoopSettings, run_loop
from gptjax.training.metrics import seconds_spent
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import make_train_step


@configclass
class FinetuneConfig:
    """Fine-tuning on dialogues.

    Attributes:
        base: run folder of the pretrained model.
        dialogues: source -> weight. A source is "chatterbot", "sums", "ratings" (each rated text as the reply
            to its instruction), or a path to JSONL with `messages`.
        text: source -> weight of plain text mixed in, as in pretraining, so that less of it is forgotten
            (InstructGPT: 10 % before PPO).
        rewordings: noisy copies of each dialogue that join it (`data/rewording.py`); not of ratings.
        heldout_rows: packed rows of each source's held-out dialogues that are measured, evenly spaced; None
            measures all.
        samples: held-out dialogues whose greedy replies before and after are written to `samples.jsonl`; the
            loss before is measured too.
        cut_long: a reply that does not fit into a row is cut at its end, as in Alpaca; else it is a bad row.
        lora: train low-rank adapters of the base alone, see `LoraConfig`; None trains every parameter.
        optimizer, mesh: see their classes.
        dropout: rate during fine-tuning (InstructGPT: 0.2 on residuals).
        length: tokens per row.
        batch_size, steps, accumulate, save_every, seed: as in pretraining.
    """

    base: str = ""
    dialogues: SomeWeights
    text: Weights = Field(default_factory=dict)
    rewordings: Natural = 0
    heldout_rows: Count | None = None
    samples: Natural = 0
    cut_long: bool = False
    lora: LoraConfig | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    dropout: BelowOne = 0.0
    length: Count
    batch_size: Count
    steps: Count
    accumulate: Count = 1
    save_every: Count = 500
    seed: Seed = 0

    def __post_init__(self):
        check_batch(self.batch_size, self.mesh, self.accumulate)


def check(config: FinetuneConfig) -> None:
    """Raises ConfigError for a base that is not there or cannot read the rows."""
    check_bases({"length": config.length}, {"base": (config.base, "language")})


def start_training(config, base, definition: ModelDefinition, adapters: LoraDefinition | None, mesh):
    """(state before the first update, compiled step): of all parameters, or of the adapters alone."""
    optimizer = make_optimizer(config.optimizer, config.steps, (adapters or definition).axes)
    loss = make_language_loss(definition)
    if adapters is None:
        state = create_state(definition, optimizer, mesh, params=base.params)
        step = make_train_step(loss, count_tokens, optimizer, accumulate=config.accumulate)
        return state, compile_step(step, mesh)
    counts = f"{adapters.parameter_count:,} of {definition.parameter_count:,}"
    print(f"finetune: adapters are trained, {counts} parameters; the base is frozen", flush=True)
    state = create_state(adapters, optimizer, mesh, key=stage_key(config.seed, "lora"))
    step = make_adapted_step(loss, count_tokens, config.lora, optimizer, accumulate=config.accumulate)
    return state, compile_step(step, mesh, base.params)


def run(config: FinetuneConfig, folder: Path, may_change: Iterable[str] = ()) -> None:
    """Fine-tunes the base model and leaves the assistant in `folder`.

    `may_change` names keys that may differ from an earlier start in this folder.
    """
    folder = open_run(folder, config, may_change=may_change)
    if stage_done(folder):
        print(f"finetune: already done in {folder}")
        return
    started, mesh = time.monotonic() - seconds_spent(folder), make_mesh(config.mesh)
    check(config)
    base = load_model(config.base, mesh, "language")
    adapters = None if config.lora is None else LoraDefinition(base.definition, config.lora)
    layout = {"tokenizer": base.tokenizer, "length": config.length}
    named = {"stage": "finetune", "seed": config.seed, "cut_long": config.cut_long}
    rows = dialogue_rows(config.dialogues, "train", rewordings=config.rewordings, **named, **layout)
    heldout = dialogue_rows(config.dialogues, "heldout", **named, **layout)
    heldout = {source: even_sample(found, config.heldout_rows) for source, found in heldout.items()}
    weights = config.dialogues | {text_name(source): weight for source, weight in config.text.items()}
    mixture = Mixture(rows | text_rows(config.text, **layout), weights, config.batch_size, config.seed)

    model_config = dataclasses.replace(base.definition.config, dropout=config.dropout)
    definition = ModelDefinition(LanguageModel, model_config)
    sum_loss = make_sum_loss(definition)

    def measured(params):
        return {n: mean_loss(sum_loss, params, source, config.batch_size) for n, source in heldout.items()}

    turns = first_turns(config.dialogues, config.samples, config.seed, base)
    # Now, because the first update gives the base's memory away.
    before = {"heldout_before": measured(base.params)} if turns else {}
    replies = greedy_replies(base, base.params, turns)
    state, step = start_training(config, base, definition, adapters, mesh)

    def batch_at(number):
        return place(mixture.batch_at(number), mesh)

    tokens_per_step = config.batch_size * config.length
    settings = LoopSettings(
        stage="finetune",
        folder=folder,
        steps=config.steps,
        save_every=config.save_every,
        eval_every=0,
        identity={"tokenizer": base.tokenizer.hash, "base": base.digest},
        tokens_per_step=tokens_per_step,
        # The map with its adapter added takes the gradient, and the adapter its own from it.
        flops_per_token=matmul_flops_per_token(
            definition, config.length, adapters=None if adapters is None else adapters.parameter_count
        ),
        devices=config.mesh.size,
        started=started,
    )
    state = run_loop(state, step, batch_at, stage_key(config.seed, "finetune"), settings)

    params = merged(base.params, state.params, config.lora) if adapters else state.params
    figures = measured(params)
    for name, loss in figures.items():
        print(f"finetune: held-out {name}: {loss:.3f} nats per assistant token", flush=True)
    if turns:
        write_comparison(folder, turns, replies, greedy_replies(base, params, turns))
    if adapters:
        save_adapters(folder, config.lora, state.params, base)
    save_model(folder, "language", base.definition.config, params, base.tokenizer)
    seconds, tokens = time.monotonic() - started, config.steps * tokens_per_step
    mark_done(folder, {"seconds": seconds, "tokens": tokens, "heldout": figures} | before)
