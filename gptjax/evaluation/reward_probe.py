"""Finished reward models on the same held-out rankings: each, all together, and on texts unlike any ranking.

Read top to bottom: configuration, texts that are no replies, hidden states, run.
Legend: G groups (prompts), K completions of a group, D model width.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
from pydantic import Field

from gptjax.config import ConfigError, configclass, from_json
from gptjax.data.corpora import read_documents
from gptjax.data.preferences import RankedArrays, RankedReplies, encode_ranked
from gptjax.data.quality import BadRows
from gptjax.evaluation import calibration
from gptjax.evaluation.outliers import auroc, fit_gaussian, unfamiliarity
from gptjax.evaluation.reward_breakdown import accuracy_by_quarter, right
from gptjax.evaluation.reward_ensemble import disagreement, ensemble_mean, standardised
from gptjax.models.functional import ModelDefinition, first_layers
from gptjax.models.transformer import Decoder
from gptjax.ranges import Count
from gptjax.runs import mark_done, open_run, stage_done
from gptjax.sharding.mesh import make_mesh
from gptjax.stages.handover import check_fit, load_model
from gptjax.stages.reward import RewardConfig, score_all
from gptjax.stages.reward_data import encode, over_batches, read_groups
from gptjax.stages.reward_evaluation import evaluate


@configclass
class RewardProbeConfig:
    """A measurement of finished reward models.

    Attributes:
        models: run folders of the reward stage, of one tokenizer; the rankings are those of the first.
        unlike: corpora whose text, cut to the lengths of the replies, is to be told from replies.
        familiar: training prompts whose replies say what is familiar.
        layer: the decoder layer whose hidden states are looked at; None for the middle one.
    """

    models: Annotated[tuple[str, ...], Field(min_length=1)]
    unlike: tuple[str, ...] = ("shakespeare",)
    familiar: Count = 256
    layer: Count | None = None


def training_config(folder: str) -> RewardConfig:
    """The configuration that a reward model was trained with.

    Raises:
        ConfigError: the folder is not a run of the reward stage.
    """
    stored = Path(folder) / "config.json"
    config = from_json(json.loads(stored.read_text("utf-8"))) if stored.exists() else None
    if not isinstance(config, RewardConfig):
        raise ConfigError(
            f"{folder} is not a run of the reward stage: name its folder, such as runs/quickstart/reward"
        )
    return config


def texts_in_place_of_replies(groups: Sequence[RankedReplies], source: str) -> list[RankedReplies]:
    """The prompts with pieces of a corpus as completions, as long in characters as the replies."""
    text = " ".join(" ".join(document.text.split()) for document in read_documents(source, split="heldout"))
    found, start = [], 0
    for group in groups:
        pieces = []
        for reply in group.completions:
            start = 0 if start + len(reply) > len(text) else start
            pieces.append(text[start : start + len(reply)].strip() or "-")
            start += len(reply)
        found.append(dataclasses.replace(group, completions=pieces))
    return found


def last_hidden(definition: ModelDefinition, params, arrays: RankedArrays, config, layer: int) -> np.ndarray:
    """The hidden state after a layer at the last token of every completion: float32 `[completions, D]`."""
    decoder = ModelDefinition(Decoder, dataclasses.replace(definition.config, layers=layer))
    params = first_layers(params["decoder"], layer)

    @jax.jit
    def program(batch):
        hidden_RxLxD = decoder.apply(
            params, batch["tokens"], segment_ids=batch["segment_ids"], positions=batch["positions"]
        )
        return hidden_RxLxD[batch["end_row"], batch["end_column"]]

    return over_batches(program, arrays, config)[arrays.lengths > 0]


def ensemble_figures(rewards_MxGxK: np.ndarray, arrays: RankedArrays, clear_gap: float) -> dict:
    """Accuracy of the models' mean, how often they agree, and whether they are wrong where they disagree."""
    valid = arrays.lengths > 0
    every = calibration.make_pairs(arrays.scores, valid)
    clear = calibration.make_pairs(arrays.scores, valid, clear_gap)
    mean = ensemble_mean(rewards_MxGxK, valid)
    differences = np.stack([every.difference(rewards) for rewards in standardised(rewards_MxGxK, valid)])
    first_is_higher = differences > 0
    return {
        "accuracy": calibration.pair_accuracy(mean, every),
        "accuracy_clear": calibration.pair_accuracy(mean, clear),
        "agreement": float((first_is_higher == first_is_higher[0]).all(0).mean()),
        "disagreement": float(disagreement(rewards_MxGxK, valid)[valid].mean()),
        "accuracy_by_disagreement": accuracy_by_quarter(differences.std(0, ddof=1), right(mean, every)),
    }


def run(config: RewardProbeConfig, folder: Path) -> None:
    """Measures every model, and all together where there are several; the figures are in `done.json`."""
    folder = open_run(folder, config)
    if stage_done(folder):
        print(f"reward probe: already done in {folder}")
        return
    started = time.monotonic()
    trained = training_config(config.models[0])
    models = {name: load_model(name, make_mesh(trained.mesh), "scalar") for name in config.models}
    check_fit({"length": trained.length}, models)
    tokenizer = models[config.models[0]].tokenizer
    train_groups, groups = read_groups(trained)
    familiar = encode(train_groups[: config.familiar], tokenizer, trained, "training rankings")
    heldout = encode(groups, tokenizer, trained, "held-out rankings")
    unlike = {}
    for source in config.unlike:
        rows, pieces = BadRows(), texts_in_place_of_replies(groups, source)
        # A piece may take more tokens than the reply in whose place it stands: it is counted, not a fault.
        unlike[source] = encode_ranked(
            pieces, tokenizer, trained.length, trained.k_max, rows, source, bundled=True
        )
        print(f"reward probe: {source}: {rows.summary()}", flush=True)
    figures, rewards = {}, []
    for name, model in models.items():
        definition, params = model.definition, model.params
        rewards.append(score_all(definition, params, heldout, trained))
        figures[name] = evaluate(rewards[-1], heldout, groups, trained.clear_gap)
        layer = min(config.layer or (definition.config.layers + 1) // 2, definition.config.layers)
        gaussian = fit_gaussian(last_hidden(definition, params, familiar, trained, layer))
        at_home = unfamiliarity(last_hidden(definition, params, heldout, trained, layer), gaussian)
        figures[name]["unlike_auroc"] = {
            source: auroc(
                at_home, unfamiliarity(last_hidden(definition, params, arrays, trained, layer), gaussian)
            )
            for source, arrays in unlike.items()
        }
        told = ", ".join(f"{source} {value:.3f}" for source, value in figures[name]["unlike_auroc"].items())
        print(f"{name}: accuracy {figures[name]['accuracy']:.3f}, told apart: {told}", flush=True)
    found = {"seconds": time.monotonic() - started, "models": figures}
    if len(models) > 1:
        found["ensemble"] = ensemble_figures(np.stack(rewards), heldout, trained.clear_gap)
        print(
            f"all together: accuracy {found['ensemble']['accuracy']:.3f}, agreement "
            f"{found['ensemble']['agreement']:.3f}",
            flush=True,
        )
    mark_done(folder, found)
