"""Reward modelling: human rankings to a score (Ouyang et al. 2022, section 3.5; Stiennon et al. 2020).

Each batch element is a prompt with its K ranked completions; every completion is run through the model
once, packed with others into rows, and all C(K, 2) pairs of the prompt are compared.
Read top to bottom: configuration, data, loss, run; what is measured is in `reward_evaluation.py`.
Legend: G groups (prompts), K completions of a group, R rows, L length.
"""

import dataclasses
import functools
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config import ConfigError, configclass
from gptjax.data.preferences import RankedArrays, pack_ranked
from gptjax.data.quality import DataError
from gptjax.errors import require
from gptjax.losses.listwise import best_of_n_loss, plackett_luce_loss
from gptjax.losses.ranking import pair_matrix, ranking_loss
from gptjax.models.functional import ModelDefinition, Params, first_layers, matmul_flops_per_token
from gptjax.models.heads import ScalarModel
from gptjax.models.transformer import DecoderConfig
from gptjax.ranges import BelowOne, Count, NonNegative, Seed
from gptjax.runs import mark_done, open_run, stage_done
from gptjax.sharding.mesh import MeshConfig, check_batch, make_mesh, place
from gptjax.stages.handover import TrainedModel, check_bases, load_model, model_kind, save_model
from gptjax.stages.keys import stage_key
from gptjax.stages.reward_data import (
    check_sizes,
    demonstrations,
    encode,
    epoch_order,
    over_batches,
    read_groups,
    rows_needed,
)
from gptjax.stages.reward_evaluation import bag_of_words_accuracy, evaluate
from gptjax.stages.sharded import compile_step, create_state
from gptjax.training.loop import LoopSettings, run_loop
from gptjax.training.metrics import seconds_spent
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import make_train_step

# About 1,600 rated texts: the mean of rewards that spread by 1 is known to 0.03; of a file's best, to 0.06.
CENTRING_PROMPTS = 256


@configclass
class RewardConfig:
    """Reward modelling on rankings.

    Attributes:
        base: run folder of the fine-tuned model; its decoder is the trunk. Of a reward model, which goes on
            with its head: preference-model pretraining on other rankings.
        source: "ratings", or a path to JSONL preferences.
        half: which half of the training data is used; the other trains a judge that shares none of it.
        groups: prompts with rankings to draw from "ratings".
        at_most: training rankings that are used, the first of the file; None for all.
        layers: the first layers of the base's decoder that are the trunk; None for all.
        k_min, k_max: completions per prompt, 4 to 9 in InstructGPT.
        loss: "pairs", every pair of a prompt; "plackett_luce", the ranking as a row of choices; "best_of_n",
            the best alone.
        margin_scale: reward units asked for per unit of human score, of "pairs"; 0 asks for the order only.
        centring: price, in the loss of "pairs", of rewards whose mean over a pair is not 0.
        normalise: what is done to the rewards after training, by the training texts that are centred on: the
            "bias" makes their mean 0; "mean_std" makes their standard deviation 1 as well (Ziegler et al.
            2019); "none" leaves the rewards as they are.
        clear_gap: difference of human means from which a held-out pair counts as clear.
        optimizer, mesh: see their classes.
        dropout: rate during training.
        length: tokens per packed row; a prompt with its completion must fit.
        batch_size: prompts per update.
        epochs: passes over the prompts.
        accumulate, save_every, seed: as in pretraining.
    """

    base: str = ""
    source: str = "ratings"
    half: Literal["both", "first", "second"] = "both"
    groups: Count = 3000
    at_most: Count | None = None
    layers: Count | None = None
    k_min: Count = 4
    k_max: Count = 9
    loss: Literal["pairs", "plackett_luce", "best_of_n"] = "pairs"
    margin_scale: NonNegative = 0.0
    centring: NonNegative = 0.0
    normalise: Literal["bias", "mean_std", "none"] = "bias"
    clear_gap: NonNegative = 1.0
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    dropout: BelowOne = 0.0
    length: Count
    batch_size: Count
    epochs: Count = 1
    accumulate: Count = 1
    save_every: Count = 200
    seed: Seed = 0

    def __post_init__(self):
        check_batch(self.batch_size, self.mesh, self.accumulate)
        check_sizes(self)
        for name in ("margin_scale", "centring"):
            if getattr(self, name) and self.loss != "pairs":
                raise ValueError(
                    f"{name} = {getattr(self, name)} belongs to loss = 'pairs': set it to 0 for '{self.loss}'"
                )


def check(config: RewardConfig) -> None:
    """Raises ConfigError for a base that is not there or cannot read the rows."""
    check_bases({"length": config.length}, {"base": (config.base, "language", "scalar")})


def completion_rewards(definition: ModelDefinition, params, batch, key=None) -> jax.Array:
    """The scalar at each completion's last token: float32 `[G, K]`."""
    scalars_RxL = definition.apply(
        params, batch["tokens"], segment_ids=batch["segment_ids"], positions=batch["positions"], key=key
    )
    return scalars_RxL[batch["end_row"], batch["end_column"]]


def make_reward_loss(
    definition: ModelDefinition, margin_scale: float, loss: str = "pairs", centring: float = 0.0
):
    """`loss(params, batch, total, key)`: a loss on rankings, additive over groups when divided by `total`."""
    losses = {
        "pairs": functools.partial(ranking_loss, margin_scale=margin_scale, centring=centring),
        "plackett_luce": plackett_luce_loss,
        "best_of_n": best_of_n_loss,
    }

    def loss_fn(params, batch, total, key):
        rewards_GxK = completion_rewards(definition, params, batch, key)
        return losses[loss](rewards_GxK, batch["scores"], batch["valid"], denominator=total)

    return loss_fn


def count_groups(batch) -> jax.Array:
    """Prompts of the whole batch that have at least one ordered pair, float32."""
    return pair_matrix(batch["scores"], batch["valid"]).any((1, 2)).sum().astype(jnp.float32)


def score_all(definition: ModelDefinition, params, arrays: RankedArrays, config) -> np.ndarray:
    """Rewards `[G, K]` of every completion, 0 where there is none, in batches as the configuration says."""
    program = jax.jit(lambda p, batch: completion_rewards(definition, p, batch))
    scores = over_batches(lambda batch: program(params, batch), arrays, config)
    return scores * (arrays.lengths > 0)


def run(config: RewardConfig, folder: Path, may_change: Iterable[str] = ()) -> None:
    """Trains the reward model and leaves it, centred on the demonstrations, in `folder`.

    `may_change` names keys that may differ from an earlier start in this folder.
    """
    folder = open_run(folder, config, may_change=may_change)
    if stage_done(folder):
        print(f"reward: already done in {folder}")
        return
    if config.source == "ratings":
        require("sklearn")
    started, mesh = time.monotonic() - seconds_spent(folder), make_mesh(config.mesh)
    check(config)
    goes_on = model_kind(config.base) == "scalar"
    base = load_model(config.base, mesh)
    train_groups, heldout_groups = read_groups(config)
    if config.at_most is not None:
        read, train_groups = len(train_groups), train_groups[: config.at_most]
        print(f"reward: the first {len(train_groups)} of {read} training rankings", flush=True)
    train = encode(train_groups, base.tokenizer, config, "reward: training rankings")
    heldout = encode(heldout_groups, base.tokenizer, config, "reward: held-out rankings")
    order = epoch_order(train.lengths.sum(1), config)
    rows = rows_needed(train, order, config.length, config.accumulate, config.mesh)

    shape, trunk = trunk_of(base, config)
    definition = ModelDefinition(ScalarModel, shape)
    key = stage_key(config.seed, "reward")
    fresh = jax.jit(definition.initialise)(jax.random.fold_in(key, 0))
    params = (base.params if goes_on else fresh) | {"decoder": trunk}
    steps = len(order)
    optimizer = make_optimizer(config.optimizer, steps, definition.axes)
    state = create_state(definition, optimizer, mesh, params=params)
    loss_fn = make_reward_loss(definition, config.margin_scale, config.loss, config.centring)
    step = make_train_step(loss_fn, count_groups, optimizer, accumulate=config.accumulate)
    print(
        f"reward: {len(train.tokens)} prompts, {steps} steps of {rows} rows x {config.length} tokens",
        flush=True,
    )

    def batch_at(number):
        return place(pack_ranked(train, order[number], config.length, rows, config.accumulate), mesh)

    settings = LoopSettings(
        stage="reward",
        folder=folder,
        steps=steps,
        save_every=config.save_every,
        eval_every=0,
        identity={"tokenizer": base.tokenizer.hash, "base": base.digest},
        tokens_per_step=rows * config.length,
        flops_per_token=matmul_flops_per_token(definition, config.length),
        devices=config.mesh.size,
        started=started,
    )
    state = run_loop(state, compile_step(step, mesh), batch_at, jax.random.fold_in(key, 1), settings)

    # The bias makes an average demonstration worth 0, so that rewards mean "better or worse than the data".
    sample = RankedArrays(*(array[:CENTRING_PROMPTS] for array in train))
    sampled = score_all(definition, state.params, sample, config)[demonstrations(sample, config)]
    params, scale = normalised(state.params, sampled, config.normalise)
    # Of the rewards that are handed over; only their differences count, which the bias leaves alone.
    rewards = score_all(definition, state.params, heldout, config) / scale
    figures = evaluate(rewards, heldout, heldout_groups, config.clear_gap)
    if config.source == "ratings":
        figures["bag_of_words_clear"] = bag_of_words_accuracy(heldout_groups, heldout, config.clear_gap)
    print(
        f"reward: held-out accuracy {figures['accuracy']:.3f}, clear pairs {figures['accuracy_clear']:.3f} "
        f"(longer wins {figures['longer_wins_clear']:.3f}), ECE {figures['ece']:.3f}",
        flush=True,
    )
    save_model(folder, "scalar", dataclasses.replace(shape, dropout=0.0), params, base.tokenizer)
    seconds, tokens = time.monotonic() - started, steps * rows * config.length
    mark_done(folder, {"seconds": seconds, "tokens": tokens, "heldout": figures})


def normalised(params: Params, rewards: np.ndarray, kind: str) -> tuple[Params, float]:
    """The scalar model whose rewards of the same texts have mean 0 and, with "mean_std", deviation 1.

    ``r' = (r - mean) / scale``, through the head and its bias.

    Args:
        params: of a scalar model.
        rewards: float32 `[N]`, what it gives.
        kind: as `normalise` of the configuration.

    Returns:
        the parameters, and `scale`, 1 but for "mean_std".

    Raises:
        DataError: all rewards are equal and cannot be scaled.
    """
    if kind == "none":
        return params, 1.0
    if kind == "bias":
        return params | {"bias": params["bias"] - rewards.mean()}, 1.0
    scale = float(rewards.std())
    if not scale:
        raise DataError("the rewards of the training texts are all equal: set normalise to 'bias'")
    head, bias = params["head"] / scale, (params["bias"] - rewards.mean()) / scale
    return params | {"head": head, "bias": bias}, scale


def trunk_of(base: TrainedModel, config: RewardConfig) -> tuple[DecoderConfig, Params]:
    """The shape and the parameters of the base's decoder, with its first `layers` alone.

    Raises:
        ConfigError: it has fewer.
    """
    shape = base.definition.config
    if config.layers is not None and config.layers > shape.layers:
        raise ConfigError(f"layers = {config.layers}, but {config.base} has {shape.layers}: lower it")
    layers = config.layers or shape.layers
    shape = dataclasses.replace(shape, layers=layers, dropout=config.dropout)
    return shape, first_layers(base.params["decoder"], layers)
