"""Ring attention on several devices against the plain attention of one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.models.attention import causal_mask, reference_attention
from gptjax.models.banded import band_mask
from gptjax.models.ring import CausalSegments, ring_attention
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.sharding.rules import axis_devices

B, H, K, L, C = 2, 4, 2, 16, 8
# Documents that end within a device's part, at its edge and far beyond it; padding; one whole row.
SEGMENTS = np.array([[1] * 3 + [2] * 5 + [3] * 6 + [0] * 2, [1] * L], np.int32)


def draw(*shape, seed):
    # Scores beyond 88, whose exp() overflows unless the largest is taken off.
    return jnp.asarray(np.random.default_rng(seed).normal(0, 3, shape), jnp.float32)


QKV = draw(B, H, L, C, seed=1), draw(B, K, L, C, seed=2), draw(B, K, L, C, seed=3)
DIRECTION = draw(B, H, L, C, seed=4)


def with_gradients(attention):
    """Output and gradients of q, k, v along a direction, compiled as one program."""

    def both(q, k, v):
        out, backward = jax.vjp(attention, q, k, v)
        return out, backward(DIRECTION)

    return jax.jit(both)(*QKV)


@pytest.mark.parametrize(
    "mesh, segments, band",
    [
        (MeshConfig(sequence=4), SEGMENTS, None),
        pytest.param(MeshConfig(sequence=2), SEGMENTS, None, marks=pytest.mark.slow),
        pytest.param(MeshConfig(sequence=8), SEGMENTS, None, marks=pytest.mark.slow),
        pytest.param(MeshConfig(sequence=4), SEGMENTS, 5, marks=pytest.mark.slow),
        pytest.param(MeshConfig(data=2, sequence=2, tensor=2), SEGMENTS, None, marks=pytest.mark.slow),
        pytest.param(MeshConfig(sequence=2, tensor=4), SEGMENTS, None, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_ring_equals_one_device_with_gradients(mesh, segments, band):
    ids = jnp.asarray(segments)
    mask = causal_mask(L, ids)
    mask = mask if band is None else band_mask(mask, band)
    expected = with_gradients(lambda q, k, v: reference_attention(q, k, v, mask, "float32"))
    with jax.set_mesh(make_mesh(mesh)):
        assert axis_devices("sequence") == mesh.sequence
        ours = with_gradients(lambda q, k, v: ring_attention(q, k, v, CausalSegments(ids), "float32", band))
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        # A gradient is a difference of products as large as the largest.
        np.testing.assert_allclose(mine, theirs, rtol=2e-6, atol=2e-6 * np.abs(theirs).max())


@pytest.mark.parametrize(
    "mesh",
    [pytest.param(MeshConfig(sequence=4), marks=pytest.mark.slow), MeshConfig(data=2, sequence=2, tensor=2)],
    ids=str,
)
def test_no_device_sees_whole_keys_or_a_whole_mask(mesh):
    def total(q, k, v):
        return ring_attention(q, k, v, CausalSegments(jnp.ones((B, L), jnp.int32)), "float32").sum()

    devices = make_mesh(mesh)
    split = NamedSharding(devices, PartitionSpec("data", "tensor", "sequence"))
    parts = [jax.device_put(x, split) for x in QKV]
    with jax.set_mesh(devices):
        program = jax.jit(jax.grad(total, (0, 1, 2))).lower(*parts).compile().as_text()
    assert "collective-permute" in program
    assert "all-gather" not in program
    assert f"{L},{L}]" not in program, "the scores of a whole row"
