"""The train state and the one jitted step every stage is built on.

A loss function returns sums that are already divided by counts over the whole batch. Micro-batch losses,
metrics and gradients therefore just add up, and the result does not depend on how a batch is cut.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gptjax.training.spikes import spiked

Metrics = dict[str, jax.Array]
LossFunction = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, Metrics]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything one optimiser changes.

    Attributes:
        step: int32 scalar, updates tried so far; the position in the data.
        params: tree of float32 master weights.
        opt_state: the optimiser's moments and count.
        skipped: int32 scalar, updates skipped in a row because a number was not finite or a spike.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    skipped: jax.Array

    @staticmethod
    def create(params, optimizer: optax.GradientTransformation) -> "TrainState":
        """The state before the first update."""
        # Two arrays, not one twice: a step that is given the state may not be given one buffer twice.
        step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        return TrainState(step, params, optimizer.init(params), skipped)


def accumulated_gradient(loss_fn: LossFunction, params, batch, totals, key, accumulate: int):
    """Loss, metrics and gradient of a batch, computed in `accumulate` micro-batches.

    Exact: `loss_fn(params, batch, totals, key)` must return sums divided by `totals`, counts over the whole
    batch, so that micro-batch results add up.

    Args:
        loss_fn: returns (scalar, metrics), additive over rows.
        batch: tree of arrays `[B, ...]`, B a multiple of `accumulate`.
        totals: tree of scalars, the denominators.
        key: folded with the micro-batch's index.

    Returns:
        (loss, metrics, gradient), float32.
    """
    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if accumulate == 1:
        (loss, metrics), gradient = gradient_fn(params, batch, totals, jax.random.fold_in(key, 0))
        return loss, metrics, gradient

    # Micro-batch i takes rows i, i + A, i + 2A, ...: every device keeps its own rows.
    def cut(x):
        return jnp.swapaxes(x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]), 0, 1)

    def one(total, index_and_batch):
        index, micro_batch = index_and_batch
        (loss, metrics), gradient = gradient_fn(params, micro_batch, totals, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, (loss, metrics, gradient)), None

    micro_batches = jax.tree.map(cut, batch)
    first = jax.tree.map(lambda x: x[0], micro_batches)
    (loss, metrics), gradient = jax.eval_shape(gradient_fn, params, first, totals, key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (loss, metrics, gradient))
    total, _ = jax.lax.scan(one, zeros, (jnp.arange(accumulate), micro_batches))
    return total


def apply_update(state: TrainState, gradient, loss, optimizer) -> tuple[TrainState, Metrics]:
    """One optimiser update, or none at all when the loss or the gradient is not finite or a spike.

    A skipped update leaves parameters, moments and the schedule's count as they were, so that the run goes
    on exactly as if the batch had not been there. `skipped` counts them in a row.
    """
    norm = optax.tree.norm(gradient)
    update = optax.with_extra_args_support(optimizer).update
    updates, opt_state = update(gradient, state.opt_state, state.params, value=loss)
    accepted = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.logical_not(spiked(opt_state))
    params = optax.apply_updates(state.params, updates)

    def keep(new, old):
        return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, old)

    state = TrainState(
        step=state.step + 1,
        params=keep(params, state.params),
        opt_state=keep(opt_state, state.opt_state),
        skipped=jnp.where(accepted, 0, state.skipped + 1),
    )
    return state, {"gradient_norm": norm, "skipped": state.skipped.astype(jnp.float32)}


def make_train_step(loss_fn: LossFunction, count_fn, optimizer, *, accumulate: int = 1, watch=None):
    """`step(state, batch, key) -> (state, metrics)`, pure and ready to be jitted.

    Args:
        loss_fn: see `accumulated_gradient`.
        count_fn: batch -> totals, the denominators over the whole batch.
        optimizer: from `make_optimizer`.
        accumulate: micro-batches per update.
        watch: gradient -> further metrics.
    """

    def step(state: TrainState, batch, key):
        key = jax.random.fold_in(key, state.step)
        totals = count_fn(batch)
        loss, metrics, gradient = accumulated_gradient(loss_fn, state.params, batch, totals, key, accumulate)
        state, update_metrics = apply_update(state, gradient, loss, optimizer)
        return state, metrics | update_metrics | (watch(gradient) if watch else {})

    return step
