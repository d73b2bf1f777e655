"""Fine-tuning a GLM on dialogues in the form of ChatGLM-6B: each reply is the [gMASK] after its prompt.

Rounds are numbered as in `data/rounds.py`; the loss is on the replies and their end tokens.
Read top to bottom: configuration, data, run.
Legend: B batch, L length.
"""

import dataclasses
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

from gptjax.config import configclass
from gptjax.data.infilling import RESERVED, BlankIds, pack_blanks
from gptjax.data.mixture import Mixture
from gptjax.data.quality import BadRows, DataError
from gptjax.data.rounds import reply_examples
from gptjax.evaluation.infilling import infilling_figures, make_blank_scores
from gptjax.generation.blanks import split_answers, write_blanks
from gptjax.generation.decode import left_pad, request_keys
from gptjax.generation.sampling import SamplingConfig
from gptjax.models.functional import ModelDefinition, matmul_flops_per_token
from gptjax.models.glm import GLM
from gptjax.ranges import BelowOne, Count, Natural, Seed, SomeWeights
from gptjax.runs import mark_done, open_run, stage_done, write_jsonl_atomic
from gptjax.sharding.mesh import MeshConfig, check_batch, make_mesh, place
from gptjax.stages.dialogue_rows import read_line, read_source
from gptjax.stages.handover import TrainedModel, check_bases, load_model, save_model
from gptjax.stages.keys import stage_key
from gptjax.stages.language_loss import PACKED, count_tokens, make_language_loss, select
from gptjax.stages.sharded import compile_step, create_state
from gptjax.training.loop import LoopSettings, run_loop
from gptjax.training.metrics import seconds_spent
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import make_train_step


@configclass
class InfillChatConfig:
    """Fine-tuning a GLM on dialogues.

    Attributes:
        base: run folder of a model pretrained on blanks.
        dialogues: source -> weight. A source is "chatterbot", "chatterbot-chinese", "ratings", or a path to
            JSONL with `messages`.
        optimizer, mesh: see their classes.
        dropout: rate during fine-tuning.
        length: tokens per row, prompt and reply together.
        batch_size, steps, accumulate, save_every, seed: as in pretraining.
        samples: replies written for each source and split when the run ends, for `samples.jsonl`.
        sampling: how they are drawn; ChatGLM's own is a temperature of 0.95 and a top-p of 0.7.
    """

    base: str = ""
    dialogues: SomeWeights
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    dropout: BelowOne = 0.0
    length: Count
    batch_size: Count
    steps: Count
    accumulate: Count = 1
    save_every: Count = 500
    samples: Natural = 8
    sampling: SamplingConfig = SamplingConfig(temperature=0.0, max_new_tokens=48)
    seed: Seed = 0

    def __post_init__(self):
        check_batch(self.batch_size, self.mesh, self.accumulate)


def read_examples(config: InfillChatConfig, base: TrainedModel, ids: BlankIds, split: str) -> dict[str, list]:
    """Source -> an example for each reply that fits; prints what was read and what was too long.

    Raises:
        DataError: a source can't be read, lacks the split, or has no reply that fits.
    """
    examples = {}
    for source in config.dialogues:
        bad_rows = BadRows()
        dialogues = read_source(source, split, bad_rows, config.seed)
        made = [e for messages, _ in dialogues for e in reply_examples(messages, base.tokenizer, ids)]
        examples[source] = [example for example in made if len(example["tokens"]) <= config.length]
        if not examples[source]:
            raise DataError(
                f"none of the {len(made)} {split} replies of {source} fits into {config.length} tokens with "
                "its prompt: raise length"
            )
        counted = f"{len(made)} replies, {len(made) - len(examples[source])} too long and left out"
        print(f"infill_chat: {source} ({split}): {read_line(bad_rows)}{counted}", flush=True)
    return examples


def make_writer(model: TrainedModel, ids: BlankIds, config: InfillChatConfig):
    """`(params, examples) -> [{"prompt", "reply", "expected"}]`, the last being the reply of the data."""
    settings = {"sampling": config.sampling, "start_id": ids.start, "end_id": ids.end}
    write = jax.jit(partial(write_blanks, model.definition, **settings))

    def text(tokens):
        return model.tokenizer.decode(int(token) for token in tokens if token < ids.cls)

    def samples(params, examples):
        in_a = [example["positions"][:, 1] == 0 for example in examples]
        prompts = [example["tokens"][a].tolist() for example, a in zip(examples, in_a, strict=True)]
        tokens, mask = left_pad(prompts, 0, config.length)
        places, counts = mask.sum(1)[:, None] - 1, np.ones(len(prompts), np.int32)
        drawn = write(params, tokens, mask, places, counts, request_keys(range(len(prompts))))
        replies = [split_answers(row, 1, ids.end)[0] for row in np.asarray(drawn)]
        expected = [example["targets"][~a] for example, a in zip(examples, in_a, strict=True)]
        return [
            {"prompt": text(prompt), "reply": text(reply), "expected": text(right)}
            for prompt, reply, right in zip(prompts, replies, expected, strict=True)
        ]

    return samples


def check(config: InfillChatConfig) -> None:
    """Raises ConfigError for a base that is not there or cannot read the rows."""
    longest = config.length + config.sampling.max_new_tokens
    check_bases({"length + sampling.max_new_tokens": longest}, {"base": (config.base, "glm")})


def run(config: InfillChatConfig, folder: Path) -> None:
    """Fine-tunes the base model and leaves the assistant, its figures and some of its replies in `folder`."""
    folder = open_run(folder, config)
    if stage_done(folder):
        print(f"infill_chat: already done in {folder}")
        return
    started, mesh = time.monotonic() - seconds_spent(folder), make_mesh(config.mesh)
    check(config)
    base = load_model(config.base, mesh, "glm")
    ids = BlankIds.after(base.definition.config.vocab_size - RESERVED)
    train = read_examples(config, base, ids, "train")
    heldout = read_examples(config, base, ids, "heldout")
    rows = {source: pack_blanks(examples, config.length) for source, examples in train.items()}
    mixture = Mixture(rows, config.dialogues, config.batch_size, config.seed)

    definition = ModelDefinition(GLM, dataclasses.replace(base.definition.config, dropout=config.dropout))
    optimizer = make_optimizer(config.optimizer, config.steps, definition.axes)
    state = create_state(definition, optimizer, mesh, params=base.params)
    loss = make_language_loss(definition)
    step = make_train_step(loss, count_tokens, optimizer, accumulate=config.accumulate)
    tokens_per_step = config.batch_size * config.length

    def batch_at(number):
        return place(select(mixture.batch_at(number), PACKED), mesh)

    settings = LoopSettings(
        stage="infill_chat",
        folder=folder,
        steps=config.steps,
        save_every=config.save_every,
        eval_every=0,
        identity={"tokenizer": base.tokenizer.hash, "base": base.digest},
        tokens_per_step=tokens_per_step,
        flops_per_token=matmul_flops_per_token(definition, config.length),
        devices=config.mesh.size,
        started=started,
    )
    state = run_loop(
        state, compile_step(step, mesh), batch_at, stage_key(config.seed, "infill_chat"), settings
    )

    scores, write = make_blank_scores(definition), make_writer(base, ids, config)
    figures, samples = {}, []
    for source in config.dialogues:
        for split, examples in (("train", train[source]), ("heldout", heldout[source])):
            measured = pack_blanks(examples, config.length)
            found = infilling_figures(scores, state.params, measured, config.batch_size)
            figures.setdefault(source, {})[split] = found
            print(
                f"infill_chat: {split} {source}: {found['loss']:.3f} nats per token of the replies, "
                f"{found['accuracy']:.1%} of them right",
                flush=True,
            )
            if config.samples:
                shown = examples[:: max(1, len(examples) // config.samples)][: config.samples]
                samples += [{"source": source, "split": split} | s for s in write(state.params, shown)]
    write_jsonl_atomic(folder / "samples.jsonl", samples)
    save_model(folder, "glm", base.definition.config, state.params, base.tokenizer)
    seconds, tokens = time.monotonic() - started, config.steps * tokens_per_step
    mark_done(folder, {"seconds": seconds, "tokens": tokens, "dialogues": figures})
