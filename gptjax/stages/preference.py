"""Learning from rankings without a reward model: DPO, IPO, KTO and ORPO (Rafailov et al. 2023 and after).

Each batch element is a prompt with its K ranked completions, as in reward modelling: every completion is run
through the policy once, and all pairs of the prompt that have an order are compared. The reference is the
policy before the first update; what it says of the completions is computed once.
Read top to bottom: configuration, log-probabilities, loss, evaluation, run.
Legend: G groups (prompts), K completions of a group, R rows, L length.
"""

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config import configclass
from gptjax.data.preferences import RankedArrays, completion_starts, pack_ranked, swap_completions
from gptjax.losses.lm import token_log_probs
from gptjax.losses.masked import masked_mean, safe_divide
from gptjax.losses.preference import dpo_loss, ipo_loss, kto_loss, kto_reference_point, orpo_loss
from gptjax.losses.ranking import pair_matrix
from gptjax.models.functional import ModelDefinition, matmul_flops_per_token
from gptjax.models.heads import LanguageModel
from gptjax.ranges import BelowOne, Count, NonNegative, Positive, Seed
from gptjax.runs import mark_done, open_run, stage_done
from gptjax.sharding.mesh import MeshConfig, check_batch, make_mesh, place
from gptjax.stages.handover import check_bases, load_model, save_model
from gptjax.stages.keys import stage_key
from gptjax.stages.policy_figures import JudgingConfig, make_judge
from gptjax.stages.reward import count_groups
from gptjax.stages.reward_data import check_sizes, encode, epoch_order, over_batches, read_groups, rows_needed
from gptjax.stages.reward_evaluation import evaluate
from gptjax.stages.sharded import compile_step, create_state
from gptjax.training.loop import LoopSettings, run_loop
from gptjax.training.metrics import seconds_spent
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import make_train_step


@configclass
class PreferenceConfig:
    """Training of a policy on rankings.

    Attributes:
        base: run folder of the fine-tuned model; also the frozen reference.
        loss: "dpo", "ipo", "kto" or "orpo", see `losses/preference.py`.
        beta: price of leaving the reference; in ORPO the weight of the odds ratio.
        label_smoothing: of DPO, the probability that a label is wrong.
        judging: how reference and policy are compared by their replies at the end; None leaves it out.
        source, half, groups, k_min, k_max, clear_gap, length, batch_size, epochs: as in reward modelling.
        dropout: rate during training.
        optimizer, mesh, accumulate, save_every, seed: as elsewhere.
    """

    base: str = ""
    loss: Literal["dpo", "ipo", "kto", "orpo"] = "dpo"
    beta: Positive = 0.1
    label_smoothing: BelowOne = 0.0
    judging: JudgingConfig | None = None
    source: str = "ratings"
    half: Literal["both", "first", "second"] = "both"
    groups: Count = 3000
    k_min: Count = 4
    k_max: Count = 9
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
        if self.label_smoothing and (self.loss != "dpo" or self.label_smoothing >= 0.5):
            raise ValueError(
                f"label_smoothing = {self.label_smoothing} must be below 0.5, and belongs to loss = dpo"
            )
        if self.loss == "kto" and self.batch_size < 2:
            raise ValueError("loss = kto needs a batch_size of at least 2: a prompt borrows others' replies")


def completion_log_probs(definition: ModelDefinition, params, batch, key=None) -> jax.Array:
    """Log-probability of each completion after its prompt, the sum over its tokens: float32 `[G, K]`.

    The batch is one of `pack_ranked` with `starts` int32 `[G, K]`; 0 where there is no completion.
    """
    model, tokens_RxL, positions = definition.bind(params), batch["tokens"], batch["positions"]
    hidden_RxLxD = model.hidden(tokens_RxL, segment_ids=batch["segment_ids"], positions=positions, key=key)
    log_probs = token_log_probs(model.logits(hidden_RxLxD[:, :-1]), tokens_RxL[:, 1:])
    # Segment 1 + g K + k is completion k of prompt g, segment 0 is padding.
    segments, starts = batch["segment_ids"][:, 1:], batch["starts"]
    starts_of_segments = jnp.concatenate([jnp.full(1, tokens_RxL.shape[1]), starts.reshape(-1)])
    said = positions[:, 1:] >= starts_of_segments[segments]
    sums = jax.ops.segment_sum(
        jnp.where(said, log_probs, 0.0).reshape(-1), segments.reshape(-1), num_segments=1 + starts.size
    )
    return sums[1:].reshape(starts.shape)


def ranked_loss(config: PreferenceConfig, policy_GxK: jax.Array, batch, total):
    """The loss over all ordered pairs; every prompt weighs the same. Additive over prompts.

    Args:
        config: names the loss.
        policy_GxK: from `completion_log_probs`.
        batch: with `scores`, `valid`, `counts` (tokens), `reference` `[G, K]`; for KTO `reference_point`
            `[G]`, which is one number.
        total: prompts of the whole batch that have a pair.
    """
    pairs = pair_matrix(batch["scores"], batch["valid"])
    weights = safe_divide(pairs, pairs.sum((1, 2), keepdims=True))

    def both(x_GxK):
        return x_GxK[:, :, None], x_GxK[:, None, :]

    policy, reference, counts = both(policy_GxK), both(batch["reference"]), both(batch["counts"])
    given = {"beta": config.beta, "weights": weights, "denominator": total}
    if config.loss == "dpo":
        found = dpo_loss(*policy, *reference, label_smoothing=config.label_smoothing, **given)
    elif config.loss == "ipo":
        found = ipo_loss(*policy, *reference, chosen_tokens=counts[0], rejected_tokens=counts[1], **given)
    elif config.loss == "orpo":
        found = orpo_loss(*policy, *counts, **given)
    else:
        # A completion is as desirable as the share of the pairs that it wins.
        given["weights"] = jnp.stack([weights.sum(2), weights.sum(1)]) / 2
        desirable, point = jnp.array([True, False])[:, None, None], batch["reference_point"][:, None]
        found = kto_loss(policy_GxK, batch["reference"], desirable, point, **given)
    logps = {
        f"logps/{name}": masked_mean(jnp.broadcast_to(x, weights.shape), weights, denominator=total)
        for name, x in zip(("chosen", "rejected"), policy, strict=True)
    }
    return found[0], found[1] | jax.lax.stop_gradient(logps)


def make_preference_loss(definition: ModelDefinition, config: PreferenceConfig):
    """`loss(params, batch, total, key)`: `ranked_loss` of what the policy says of the batch."""

    def loss_fn(params, batch, total, key):
        return ranked_loss(config, completion_log_probs(definition, params, batch, key), batch, total)

    return loss_fn


def with_reference_point(definition: ModelDefinition, step):
    """KTO's step: z0 is that of the whole batch, before it is cut into micro-batches."""

    def step_with_point(state, batch, key):
        swapped = batch["swapped"]
        policy = completion_log_probs(definition, state.params, swapped)
        point = kto_reference_point(policy, swapped["reference"], swapped["valid"])
        rest = {name: array for name, array in batch.items() if name != "swapped"}
        points = jnp.broadcast_to(point, len(batch["scores"]))
        state, metrics = step(state, rest | {"reference_point": points}, key)
        return state, metrics | {"kl": point}

    return step_with_point


class Comparisons:
    """Rankings with what the reference says of them, and their packed batches.

    Attributes:
        arrays: the rankings.
        more: `starts`, `counts` int32 and `reference` float32, `[G, K]`.
    """

    def __init__(self, arrays: RankedArrays, starts: np.ndarray, log_probs, config: PreferenceConfig):
        self.arrays, self._config = arrays, config
        self.more = {"starts": starts, "counts": arrays.lengths - starts}
        self.more["reference"] = over_batches(log_probs, arrays, config, self.more) * (arrays.lengths > 0)

    def batch(self, index: np.ndarray, rows: int, parts: int = 1) -> dict[str, np.ndarray]:
        """Some prompts, packed as `pack_ranked` does."""
        packed = pack_ranked(self.arrays, index, self._config.length, rows, parts)
        return packed | {name: array[index] for name, array in self.more.items()}


def make_batches(train: Comparisons, order: np.ndarray, log_probs, pad_id: int, config: PreferenceConfig):
    """(rows of a batch, `batch_at(step)`); KTO's batches bring the swapped completions along."""
    rows = rows_needed(train.arrays, order, config.length, config.accumulate, config.mesh)
    if config.loss != "kto":
        return rows, lambda number: train.batch(order[number], rows, config.accumulate)
    starts = train.more["starts"]
    arrays = swap_completions(train.arrays, starts, order, pad_id)
    # A swapped completion starts where its new prompt ends.
    prompts = np.where(arrays.lengths > 0, starts[order.reshape(-1)].max(1)[:, None], 0).astype(np.int32)
    swapped = Comparisons(arrays, prompts, log_probs, config)
    places = np.arange(order.size).reshape(order.shape)
    swapped_rows = rows_needed(arrays, places, config.length, 1, config.mesh)

    def batch_at(number):
        batch = train.batch(order[number], rows, config.accumulate)
        return batch | {"swapped": swapped.batch(places[number], swapped_rows)}

    return rows, batch_at


def implicit_rewards(config: PreferenceConfig, policy: np.ndarray, more: dict[str, np.ndarray]) -> np.ndarray:
    """What the trained policy ranks completions by, `[G, K]`; ORPO's has no reference, IPO's is per token."""
    ratios = policy if config.loss == "orpo" else policy - more["reference"]
    return config.beta * (
        ratios / np.maximum(more["counts"], 1) if config.loss in ("ipo", "orpo") else ratios
    )


def check(config: PreferenceConfig) -> None:
    """Raises ConfigError for a base that is not there or cannot read the rows."""
    check_bases({"length": config.length}, {"base": (config.base, "language")})


def run(config: PreferenceConfig, folder: Path, may_change: Iterable[str] = ()) -> None:
    """Trains the policy on rankings and leaves it in `folder`.

    `may_change` names keys that may differ from an earlier start in this folder.
    """
    folder = open_run(folder, config, may_change=may_change)
    if stage_done(folder):
        print(f"preference: already done in {folder}")
        return
    started, mesh = time.monotonic() - seconds_spent(folder), make_mesh(config.mesh)
    check(config)
    base = load_model(config.base, mesh, "language")
    judge = make_judge(config.judging, base, mesh)
    definition = ModelDefinition(
        LanguageModel, dataclasses.replace(base.definition.config, dropout=config.dropout)
    )
    program = jax.jit(lambda params, batch: completion_log_probs(definition, params, batch))

    def by_reference(batch):
        return program(base.params, batch)

    def comparisons(groups, name):
        arrays = encode(groups, base.tokenizer, config, f"preference: {name} rankings")
        return Comparisons(arrays, completion_starts(arrays, base.tokenizer), by_reference, config)

    train_groups, heldout_groups = read_groups(config)
    train = comparisons(train_groups, "training")
    heldout = comparisons(heldout_groups, "held-out")
    order = epoch_order(train.arrays.lengths.sum(1), config)
    rows, batches = make_batches(train, order, by_reference, base.tokenizer.pad_id, config)

    steps = len(order)
    optimizer = make_optimizer(config.optimizer, steps, definition.axes)
    state = create_state(definition, optimizer, mesh, params=base.params)
    loss_fn = make_preference_loss(definition, config)
    step = make_train_step(loss_fn, count_groups, optimizer, accumulate=config.accumulate)
    step = with_reference_point(definition, step) if config.loss == "kto" else step
    print(
        f"preference: {config.loss}, {len(train.arrays.tokens)} prompts, {steps} steps of {rows} rows x "
        f"{config.length} tokens",
        flush=True,
    )
    settings = LoopSettings(
        stage="preference",
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
    key = stage_key(config.seed, "preference")
    state = run_loop(
        state, compile_step(step, mesh), lambda number: place(batches(number), mesh), key, settings
    )

    policy = over_batches(lambda batch: program(state.params, batch), heldout.arrays, config, heldout.more)
    rewards = implicit_rewards(config, policy, heldout.more) * (heldout.arrays.lengths > 0)
    figures = evaluate(rewards, heldout.arrays, heldout_groups, config.clear_gap)
    print(
        f"preference: held-out accuracy of the implicit reward {figures['accuracy']:.3f}, clear pairs "
        f"{figures['accuracy_clear']:.3f} (longer wins {figures['longer_wins_clear']:.3f})",
        flush=True,
    )
    figures |= judge(state.params, folder)
    save_model(folder, "language", base.definition.config, state.params, base.tokenizer)
    seconds, tokens = time.monotonic() - started, steps * rows * config.length
    mark_done(folder, {"seconds": seconds, "tokens": tokens, "heldout": figures})
