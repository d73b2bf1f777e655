"""The pipeline against a loop over its layers, and its schedule by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.sharding.pipeline import bubble_fraction, from_microbatches, pipeline, to_microbatches

N, M, B, L, D = 8, 3, 2, 4, 5


def test_bubble_by_hand():
    assert bubble_fraction(1, 4) == 0
    assert bubble_fraction(4, 4) == 3 / 7
    assert bubble_fraction(4, 1) == 3 / 4, "one micro-batch: three of four stages wait"


def test_microbatches_take_rows_in_turn_and_give_them_back():
    rows = np.arange(12).reshape(6, 2)
    cut = to_microbatches(jnp.asarray(rows), 3)
    np.testing.assert_array_equal(cut[1], rows[[1, 4]])
    np.testing.assert_array_equal(from_microbatches(cut), rows)
    assert to_microbatches(jnp.ones((1, 7)), 3).shape == (3, 1, 7), "what all rows share"


@pytest.mark.parametrize(
    "stages", [4, pytest.param(2, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)]
)
def test_the_pipeline_equals_a_loop_with_gradients(stages):
    rng = np.random.default_rng(0)
    layers = jnp.asarray(rng.normal(0, 0.5, (N, D, D)), jnp.float32)
    x, direction = (jnp.asarray(rng.normal(size=(M, B, L, D)), jnp.float32) for _ in range(2))
    beside = jnp.asarray(rng.normal(size=(M, B, L, 1)), jnp.float32)

    def run(layers, x, beside, stage=0):
        for i in range(layers.shape[0]):
            x = jnp.tanh(x @ layers[i] + beside)
        return x

    def gradients(function):
        return jax.jit(jax.value_and_grad(lambda *a: (function(*a) * direction).sum(), (0, 1, 2)))(
            layers, x, beside
        )

    expected = gradients(lambda layers, x, beside: run(layers, x, beside))
    with jax.set_mesh(make_mesh(MeshConfig(stage=stages))):
        ours = gradients(lambda layers, x, beside: pipeline(run, layers, x, beside))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6), ours, expected)
