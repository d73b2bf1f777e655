"""Schedules by hand, AdamW against numpy, and which parameters decay or turn orthogonal."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax.models.families import gpt2
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.training.optimizers import OptimizerConfig, make_optimizer, make_schedule

AXES = {
    "matrix": ("embed", "mlp"),
    "gain": ("norm",),
    "stack": ("layers", "embed", "mlp"),
    "bias": ("layers", "mlp"),
}


def rates(counts, steps=110, **settings):
    schedule = make_schedule(OptimizerConfig(learning_rate=1e-3, **settings), steps)
    return [float(schedule(jnp.int32(count))) for count in counts]


def test_cosine_by_hand():
    """A rise of 10 steps, then half a cosine of 100 from the peak to a tenth of it."""
    values = rates([0, 5, 10, 60, 110, 500], schedule="cosine", warmup_steps=10)
    np.testing.assert_allclose(values, [0, 5e-4, 1e-3, 5.5e-4, 1e-4, 1e-4], rtol=1e-6)
    third = 1e-4 + 9e-4 * (1 + np.cos(np.pi / 4)) / 2
    np.testing.assert_allclose(rates([35], schedule="cosine", warmup_steps=10), third, rtol=1e-6)


def test_linear_by_hand():
    settings = {"schedule": "linear", "warmup_steps": 10, "final_fraction": 0.0}
    np.testing.assert_allclose(rates([5, 10, 35, 110], **settings), [5e-4, 1e-3, 7.5e-4, 0], atol=1e-10)


def test_constant_with_warmup_by_hand():
    settings = {"schedule": "constant", "warmup_steps": 10, "warmup_from": 0.1}
    np.testing.assert_allclose(rates([0, 5, 10, 109], **settings), [1e-4, 5.5e-4, 1e-3, 1e-3], rtol=1e-6)
    np.testing.assert_allclose(rates([0, 109], schedule="constant"), [1e-3, 1e-3], rtol=1e-6)


def test_noam_equals_the_paper_s_formula():
    """`d^-0.5 min(step^-0.5, step warmup^-1.5)`; 6.99e-4 at the top for the base model."""
    peak = 512**-0.5 * 4000**-0.5
    assert round(peak, 6) == 6.99e-4
    config = OptimizerConfig(schedule="noam", warmup_steps=4000, learning_rate=peak)
    schedule = make_schedule(config, 100_000)
    for step in (1, 2000, 4000, 16_000, 100_000):
        expected = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
        np.testing.assert_allclose(schedule(jnp.int32(step - 1)), expected, rtol=1e-5)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="'noam' needs warmup_steps of at least 1"):
        OptimizerConfig(schedule="noam")
    with pytest.raises(ValueError, match="learning_rate\n.*greater than 0"):
        OptimizerConfig(learning_rate=0.0)


def draw(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"matrix": (3, 4), "gain": (4,), "stack": (2, 3, 4), "bias": (2, 4)}
    return {name: scale * rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_adamw_equals_its_equations():
    """Three steps of Loshchilov and Hutter's algorithm 2 with clipping, in numpy float64."""
    config = OptimizerConfig(
        learning_rate=0.01, schedule="linear", warmup_steps=2, weight_decay=0.5, clip_norm=1.0
    )
    optimizer = make_optimizer(config, 6, AXES)
    params = draw(0)
    state, ours = optimizer.init(params), params
    theirs = {name: p.astype(np.float64) for name, p in params.items()}
    m, v = ({name: np.zeros(p.shape) for name, p in params.items()} for _ in range(2))
    update = jax.jit(optimizer.update)
    for step, scale in ((1, 0.01), (2, 3.0), (3, 1.0)):
        gradient = draw(step, scale)
        updates, state = update(gradient, state, ours)
        ours = optax.apply_updates(ours, updates)
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradient.values()))
        rate = {1: 0.0, 2: 0.005, 3: 0.01}[step]
        for name, p in theirs.items():
            g = gradient[name] / max(norm, 1.0)
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.95 * v[name] + 0.05 * g**2
            direction = m[name] / (1 - 0.9**step) / (np.sqrt(v[name] / (1 - 0.95**step)) + 1e-8)
            decay = 0.5 if name in ("matrix", "stack") else 0.0
            theirs[name] = p - rate * (direction + decay * p)
    for name in params:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size", "times"), [(1e-6, 28.8), (1e-4, 3.8)])
def test_epsilon_of_tensorflow_1_holds_small_gradients_back(size, times):
    """The first step of a gradient about as small as epsilon = 1e-5, with b2 = 0.999."""
    settings = {"epsilon": 1e-5, "b2": 0.999, "weight_decay": 0.0, "clip_norm": None, "schedule": "constant"}
    gradient = {name: np.full(g.shape, size, np.float32) for name, g in draw(0).items()}

    def step(kind):
        optimizer = make_optimizer(OptimizerConfig(kind=kind, **settings), 10, AXES)
        return optimizer.update(gradient, optimizer.init(gradient), gradient)[0]["gain"][0]

    assert round(float(step("adamw") / step("adam_tf1")), 1) == times


def test_adam_of_tensorflow_1_equals_its_equations():
    """`lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + epsilon)` in numpy float64, decay beside it."""
    settings = {"learning_rate": 0.01, "schedule": "constant", "clip_norm": None, "epsilon": 0.1}
    config = OptimizerConfig(kind="adam_tf1", b2=0.999, weight_decay=0.5, **settings)
    optimizer, params = make_optimizer(config, 6, AXES), draw(0)
    state, theirs = optimizer.init(params), {name: p.astype(np.float64) for name, p in params.items()}
    m, v = ({name: np.zeros(p.shape) for name, p in params.items()} for _ in range(2))
    for step in (1, 2, 3):
        gradient = draw(step)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        for name, g in gradient.items():
            m[name], v[name] = 0.9 * m[name] + 0.1 * g, 0.999 * v[name] + 0.001 * g.astype(np.float64) ** 2
            rate = np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            decay = 0.5 * theirs[name] if name in ("matrix", "stack") else 0.0
            theirs[name] -= 0.01 * (rate * m[name] / (np.sqrt(v[name]) + 0.1) + decay)
    for name in params:
        # 1 - 0.999 has four digits in float32.
        np.testing.assert_allclose(params[name], theirs[name], rtol=1e-5, atol=3e-6)


def test_weight_decay_touches_matrices_and_embeddings_alone():
    """A zero gradient leaves only the decay: `-learning_rate * weight_decay * w`."""
    config = gpt2("124M", vocab_size=11, context_length=6, width=8, layers=2, heads=2)
    definition = ModelDefinition(LanguageModel, config)
    optimizer = make_optimizer(
        OptimizerConfig(learning_rate=0.1, schedule="constant", weight_decay=0.2), 10, definition.axes
    )
    params = jax.tree.map(lambda x: jnp.ones(x.shape), definition.abstract)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = jax.jit(lambda p, g: optimizer.update(g, optimizer.init(p), p)[0])(params, zeros)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        decayed = name.endswith(("kernel", "embedding", "positions"))
        assert decayed != name.endswith(("bias", "scale"))
        np.testing.assert_allclose(update, -0.02 if decayed else 0.0, rtol=1e-6, err_msg=name)


def test_muon_turns_every_stacked_matrix_orthogonal_and_leaves_the_rest_to_adam():
    settings = {"schedule": "constant", "weight_decay": 0.0, "clip_norm": None, "learning_rate": 0.01}
    params, gradient = draw(0), draw(1)
    muon = make_optimizer(OptimizerConfig(kind="muon", muon_learning_rate=0.5, **settings), 10, AXES)
    adam = make_optimizer(OptimizerConfig(**settings), 10, AXES)
    updates, state = jax.jit(muon.update)(gradient, muon.init(params), params)
    expected, _ = jax.jit(adam.update)(gradient, adam.init(params), params)
    for name in ("matrix", "gain", "bias"):
        np.testing.assert_allclose(updates[name], expected[name], rtol=1e-6)
    for layer, layer_gradient in zip(updates["stack"], gradient["stack"], strict=True):
        u, values, v = np.linalg.svd(-np.asarray(layer) / 0.5, full_matrices=False)
        # Five Newton-Schulz iterations bring singular values to between 0.7 and 1.2, of a wide map as well.
        assert (values > 0.6).all()
        assert (values < 1.25).all()
        left, _, right = np.linalg.svd(layer_gradient, full_matrices=False)
        np.testing.assert_allclose(u @ v, left @ right, atol=0.02)
