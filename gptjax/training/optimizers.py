"""Learning-rate schedules and optimisers, composed from optax."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from gptjax.config import configclass
from gptjax.ranges import BelowOne, Count, Fraction, Natural, NonNegative, Positive
from gptjax.training.spikes import SpikeConfig, watch_spikes


@configclass
class OptimizerConfig:
    """One optimiser.

    Attributes:
        kind: "adamw"; "adam_tf1", whose epsilon is not bias-corrected (`scale_by_adam_tf1`); or "muon"
            (orthogonalised momentum on the hidden matrices, AdamW on embeddings, heads, biases and gains;
            Jordan et al. 2024, the algorithm of the text: their code, and `optax.contrib.muon`, make the
            update of a wide map sqrt(outputs / inputs) times as long).
        learning_rate: peak, reached after the warm-up.
        schedule: "cosine" or "linear" fall from the peak to `final_fraction` of it when the run ends;
            "constant" stays at the peak; "noam" is `peak * min(sqrt(warmup / step), step / warmup)`
            (Vaswani et al. 2017, section 5.3).
        warmup_steps: steps of linear rise.
        warmup_from: fraction of the peak at which the rise starts.
        final_fraction: where cosine and linear end.
        decay_steps: step at which they end, to stay there; None is the run's last (GPT-3: at 260 of 300
            billion tokens).
        b1, b2, epsilon: Adam's moments and the term under its quotient.
        weight_decay: decoupled, on matrices and embeddings only.
        clip_norm: largest global norm of the gradient; None switches clipping off.
        muon_learning_rate: peak of the hidden matrices' rate when kind is "muon".
        spikes: skip steps whose loss or gradient suddenly jumps; None skips only what is not finite.
    """

    kind: Literal["adamw", "adam_tf1", "muon"] = "adamw"
    learning_rate: Positive = 6e-4
    schedule: Literal["cosine", "linear", "constant", "noam"] = "cosine"
    warmup_steps: Natural = 0
    warmup_from: Fraction = 0.0
    final_fraction: Fraction = 0.1
    decay_steps: Count | None = None
    b1: BelowOne = 0.9
    b2: BelowOne = 0.95
    epsilon: Positive = 1e-8
    weight_decay: NonNegative = 0.1
    clip_norm: Positive | None = 1.0
    muon_learning_rate: Positive = 0.02
    spikes: SpikeConfig | None = None

    def __post_init__(self):
        if self.schedule == "noam" and self.warmup_steps < 1:
            raise ValueError("schedule 'noam' needs warmup_steps of at least 1")


def make_schedule(config: OptimizerConfig, steps: float, peak: float | None = None) -> optax.Schedule:
    """The learning rate as a function of the number of updates made so far.

    Args:
        config: names the shape.
        steps: updates in the whole run.
        peak: highest value; None takes `config.learning_rate`.

    Returns:
        int32 count -> float32 rate.
    """
    peak = config.learning_rate if peak is None else peak
    warmup = config.warmup_steps
    if config.schedule == "noam":

        def noam(count):
            step = count + 1.0
            return peak * jnp.minimum(jnp.sqrt(warmup / step), step / warmup)

        return noam
    remaining = max((config.decay_steps or steps) - warmup, 1)
    after = {
        "cosine": optax.cosine_decay_schedule(peak, remaining, config.final_fraction),
        "linear": optax.linear_schedule(peak, peak * config.final_fraction, remaining),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    if not warmup:
        return after
    rise = optax.linear_schedule(peak * config.warmup_from, peak, warmup)
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(
    config: OptimizerConfig, steps: float, axes, clock: Callable = lambda count: count
) -> optax.GradientTransformation:
    """Clipping, moments, decay and schedule in one transformation.

    Args:
        config: see `OptimizerConfig`.
        steps: updates in the whole run.
        axes: tree of logical axis names, from which the maps that decay are derived.
        clock: number of updates made -> the schedule's step, where that is another (`BatchPlan.clock`).
    """
    rate = make_schedule(config, steps)
    decay_mask = jax.tree.map(lambda names: len(_own_axes(names)) >= 2, axes, is_leaf=_is_names)
    adam = scale_by_adam_tf1 if config.kind == "adam_tf1" else optax.scale_by_adam
    update = optax.chain(
        adam(config.b1, config.b2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(lambda count: rate(clock(count))),
    )
    if config.kind == "muon":
        update = _with_muon(update, config, steps, axes, clock)
    if config.clip_norm is not None:
        update = optax.chain(optax.clip_by_global_norm(config.clip_norm), update)
    return update if config.spikes is None else optax.chain(watch_spikes(config.spikes), update)


def scale_by_adam_tf1(b1: float, b2: float, epsilon: float) -> optax.GradientTransformation:
    """Adam as in TensorFlow 1, whose epsilon is not bias-corrected.

    ``sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + epsilon)``; Adam proper has ``m' / (sqrt(v') + epsilon)``
    with the corrected moments m' and v', as if epsilon here were ``epsilon * sqrt(1 - b2^t)``. Where
    gradients are about as small as epsilon, the first steps are therefore smaller here: at b2 = 0.999,
    epsilon = 1e-5 and a gradient of 1e-6 the first is 29 times smaller.

    Source: Kingma and Ba 2015, the form at the end of section 2; Huang et al. 2024 (arXiv 2403.17031).
    """

    def update(gradient, state, params=None):
        mu = optax.tree.update_moment(gradient, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(gradient, state.nu, b2, 2)
        count = optax.safe_increment(state.count)
        correction = jnp.sqrt(1 - b2**count) / (1 - b1**count)
        steps = jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + epsilon), mu, nu)
        return steps, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam(b1, b2, epsilon).init, update)


def _with_muon(adam, config, steps, axes, clock):
    # A hidden map is a stacked matrix [N, inputs, outputs]; embeddings and heads keep Adam.
    labels = jax.tree.map(
        lambda names: "muon" if names[0] == "layers" and len(names) == 3 else "adam", axes, is_leaf=_is_names
    )
    rate = make_schedule(config, steps, config.muon_learning_rate)
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    muon = optax.chain(
        optax.contrib.scale_by_muon(
            weight_dimension_numbers=lambda params: jax.tree.map(lambda _: matrix, params)
        ),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(lambda count: rate(clock(count))),
    )
    return optax.multi_transform({"muon": muon, "adam": adam}, labels)


def _own_axes(names):
    return [name for name in names if name != "layers"]


def _is_names(leaf):
    return isinstance(leaf, tuple)
