"""A guard against batches that would throw a run back: steps with a sudden loss or gradient are skipped."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gptjax.config import configclass
from gptjax.ranges import Count, Positive


@configclass
class SpikeConfig:
    """What counts as a spike.

    Attributes:
        window: accepted steps that are remembered; fewer judge nothing.
        deviations: standard deviations above their mean that are accepted.
    """

    window: Count = 128
    deviations: Positive = 6.0


class SpikeState(NamedTuple):
    """Losses and gradient norms of the last accepted steps.

    Attributes:
        count: int32 scalar, accepted steps.
        recent: float32 `[window, 2]`.
        spiked: bool scalar, whether the update that was just computed is to be thrown away.
    """

    count: jax.Array
    recent: jax.Array
    spiked: jax.Array


def watch_spikes(config: SpikeConfig) -> optax.GradientTransformationExtraArgs:
    """Leaves the gradient as it is and notes in its state, as `spiked`, whether loss or norm is a spike:

        x > mean + deviations * standard deviation, over the last `window` accepted steps

    Who applies the update keeps the whole old state then, and with it the old memory (`apply_update`).

    Source: the rule of MaxText's and Levanter's step skipping.
    """

    def init(params):
        del params
        return SpikeState(
            jnp.zeros((), jnp.int32), jnp.zeros((config.window, 2), jnp.float32), jnp.zeros((), bool)
        )

    def update(gradient, state, params=None, *, value, **_):
        del params
        now = jnp.stack([value, optax.tree.norm(gradient)]).astype(jnp.float32)
        mean, deviation = state.recent.mean(0), state.recent.std(0)
        above = (now > mean + config.deviations * deviation).any()
        recent = state.recent.at[state.count % config.window].set(now)
        return gradient, SpikeState(state.count + 1, recent, above & (state.count >= config.window))

    return optax.GradientTransformationExtraArgs(init, update)


def spiked(opt_state) -> jax.Array | bool:
    """Whether an optimiser's new state says that its update is a spike; False where none is watched for."""
    states = [s for s in jax.tree.leaves(opt_state, is_leaf=_is_watch) if _is_watch(s)]
    return states[0].spiked if states else False


def _is_watch(node) -> bool:
    return isinstance(node, SpikeState)
