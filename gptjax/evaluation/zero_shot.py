"""Finished models on what they were not trained for: text of another source, and tasks shown in the context.

Radford et al. 2019, section 3; Brown et al. 2020, section 2.4. Read top to bottom: configuration, text, tasks
and run.
Legend: B batch, L length, V vocabulary, K examples in the context.
"""

import json
import math
import time
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from gptjax.config import ConfigError, configclass
from gptjax.data.corpora import read_documents
from gptjax.data.in_context import Question, questions
from gptjax.data.tokenizers import encode_on, text_start_id
from gptjax.evaluation.perplexity import bits_per_byte, first_bytes, heldout_rows, mean_loss
from gptjax.models.functional import ModelDefinition
from gptjax.ranges import Count, Natural, Seed
from gptjax.runs import mark_done, open_run, stage_done
from gptjax.sharding.mesh import MeshConfig, check_any_stage, make_mesh, to_host
from gptjax.stages.handover import TrainedModel, load_model, too_long
from gptjax.stages.language_loss import make_sum_loss


@configclass
class ZeroShotConfig:
    """A measurement of finished models.

    Attributes:
        models: run folders, such as those of a ladder of sizes.
        text: sources none of them was trained on.
        text_bytes: how much of each source is measured, from each document its beginning.
        task: "majority" or "addition" (`data/in_context.py`), or None.
        shots: the numbers K of examples in the context.
        questions: how many are asked for each K.
        length: tokens of a row; the longest question fits.
        batch_size: rows at once.
        mesh: see `MeshConfig`.
        seed: of the questions.
    """

    models: Annotated[tuple[str, ...], Field(min_length=1)]
    text: tuple[str, ...] = ()
    text_bytes: Count = 200_000
    task: Literal["majority", "addition"] | None = None
    shots: Annotated[tuple[Natural, ...], Field(min_length=1)] = (0, 1, 2, 4, 8, 16)
    questions: Count = 100
    length: Count
    batch_size: Count = 32
    mesh: MeshConfig = MeshConfig()
    seed: Seed = 0

    def __post_init__(self):
        check_any_stage(self.mesh)


def unseen_texts(source: str, models: tuple[str, ...], limit: int) -> list[str]:
    """All documents of a source, of each the beginning.

    Raises:
        ConfigError: one of the models was trained on the source.
    """
    for folder in models:
        if source in trained_on(folder):
            raise ConfigError(f"{folder} was trained on {source}: measure zero-shot on another text")
    documents = read_documents(source, split="train") + read_documents(source, split="heldout")
    return first_bytes([d.text for d in documents], limit)


def trained_on(folder: str | Path) -> set[str]:
    """The sources of a run, and of those that it goes on from."""
    stored = Path(folder) / "config.json"
    config = json.loads(stored.read_text("utf-8")) if stored.exists() else {}
    sources = {source for key in ("corpora", "text", "dialogues") for source in config.get(key) or {}}
    return sources.union(*(trained_on(config[key]) for key in ("base", "policy") if config.get(key)))


def text_figures(model: TrainedModel, texts: list[str], config: ZeroShotConfig) -> dict[str, float]:
    """Bits per byte and perplexity per byte, `2 ** bits`: comparable whatever the tokenizer."""
    rows = heldout_rows(texts, model.tokenizer, config.length)
    loss = mean_loss(make_sum_loss(model.definition), model.params, rows, config.batch_size)
    bits = bits_per_byte(loss, float(rows["loss_mask"].sum()), texts)
    return {"bits_per_byte": bits, "byte_perplexity": 2**bits}


def completion_row(prompt: str, completion: str, tokenizer, length: int) -> dict[str, np.ndarray]:
    """A padded row [L] whose loss mask is on the completion's tokens; the row begins as a text does.

    Raises:
        ConfigError: it does not fit.
    """
    before = [text_start_id(tokenizer), *tokenizer.encode(prompt)]
    ids = before + encode_on(tokenizer, completion)
    if len(ids) > length + 1:
        raise ConfigError(f"a question takes {len(ids) - 1} tokens, but length = {length}: raise it")
    padded = np.full(length + 1, tokenizer.pad_id, np.int32)
    padded[: len(ids)] = ids
    places = np.arange(1, length + 1)
    mask = ((places >= len(before)) & (places < len(ids))).astype(np.float32)
    return {"tokens": padded[:-1], "targets": padded[1:], "loss_mask": mask}


def make_completion_scores(definition: ModelDefinition):
    """Jitted `(params, rows) -> (mean log-probability, most likely ids)`: float32 `[B]`, int32 `[B, L]`.

    The mean is over a completion's tokens, as GPT-3 compares choices (section 2.4).
    """

    @jax.jit
    def scores(params, rows):
        log_probs_BxLxV = jax.nn.log_softmax(definition.apply(params, rows["tokens"]), axis=-1)
        target = jnp.take_along_axis(log_probs_BxLxV, rows["targets"][..., None], axis=-1)[..., 0]
        mask = rows["loss_mask"]
        return (target * mask).sum(1) / mask.sum(1), log_probs_BxLxV.argmax(-1)

    return scores


def score_rows(scores, params, rows: list[dict[str, np.ndarray]], batch_size: int):
    """`make_completion_scores` of any number of rows, the last batch filled with copies."""
    means, likeliest = [], []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        part += part[:1] * (batch_size - len(part))
        mean, ids = scores(params, {name: np.stack([row[name] for row in part]) for name in part[0]})
        means.append(to_host(mean))
        likeliest.append(to_host(ids))
    return np.concatenate(means)[: len(rows)], np.concatenate(likeliest)[: len(rows)]


def right_choices(model: TrainedModel, scores, asked: list[Question], config: ZeroShotConfig) -> list[bool]:
    """Whether the answer has the highest mean log-probability of a question's choices."""
    rows = [
        completion_row(question.prompt, choice, model.tokenizer, config.length)
        for question in asked
        for choice in question.choices
    ]
    means, _ = score_rows(scores, model.params, rows, config.batch_size)
    right = []
    for question in asked:
        own, means = means[: len(question.choices)], means[len(question.choices) :]
        right.append(question.choices[int(own.argmax())] == question.answer)
    return right


def right_greedily(model: TrainedModel, scores, asked: list[Question], config: ZeroShotConfig) -> list[bool]:
    """Whether greedy decoding writes the answer and then no letter or digit.

    One pass over the answer shows it: decoding writes it if each of its tokens is the likeliest after those
    before it.
    """
    tokenizer, right = model.tokenizer, []
    rows = [completion_row(q.prompt, q.answer, tokenizer, config.length) for q in asked]
    _, likeliest = score_rows(scores, model.params, rows, config.batch_size)
    for row, ids in zip(rows, likeliest, strict=True):
        places = np.flatnonzero(row["loss_mask"])
        after = tokenizer.token_bytes(int(ids[places[-1] + 1])) if places[-1] + 1 < config.length else b""
        written = bool((ids[places] == row["targets"][places]).all())
        right.append(written and not after[:1].isalnum())
    return right


def task_figures(model: TrainedModel, config: ZeroShotConfig) -> dict[str, dict[str, float]]:
    """K -> accuracy, and the accuracy that the best reader of the same prompts has on average."""
    scores, figures = make_completion_scores(model.definition), {}
    for shots in config.shots:
        asked = questions(config.task, shots, config.questions, config.seed)
        judge = right_choices if asked[0].choices else right_greedily
        right = judge(model, scores, asked, config)
        figures[str(shots)] = {
            "accuracy": float(np.mean(right)),
            "best": math.fsum(q.best for q in asked) / len(asked),
        }
    return figures


def run(config: ZeroShotConfig, folder: Path) -> None:
    """Measures every model and leaves the figures in `folder`."""
    folder = open_run(folder, config)
    if stage_done(folder):
        print(f"zero-shot: already done in {folder}")
        return
    started, mesh, report = time.monotonic(), make_mesh(config.mesh), {}
    texts = {source: unseen_texts(source, config.models, config.text_bytes) for source in config.text}
    for name in config.models:
        model = load_model(name, mesh, "language")
        sentence = too_long({"length": config.length}, model.definition.config.context_length)
        if sentence:
            raise ConfigError(sentence)
        figures = {"parameters": model.definition.parameter_count}
        figures["text"] = {source: text_figures(model, text, config) for source, text in texts.items()}
        for source, of_text in figures["text"].items():
            print(
                f"zero-shot: {name}: {source}: perplexity {of_text['byte_perplexity']:.3f} per byte",
                flush=True,
            )
        if config.task:
            figures["in_context"] = task_figures(model, config)
            shown = ", ".join(f"{k}: {f['accuracy']:.2f}" for k, f in figures["in_context"].items())
            print(f"zero-shot: {name}: {config.task} after K examples: {shown}", flush=True)
        report[name] = figures
    mark_done(folder, {"seconds": time.monotonic() - started, "tokens": 0, "models": report})
