"""Attention and rotary positions against loops in numpy, and their invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.models.attention import causal_mask, fused_attention, reference_attention
from gptjax.models.rotary import apply_rotary, rotary_angles

B, H, K, L, C = 2, 4, 2, 6, 8
SEGMENTS = jnp.asarray([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]])


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def qkv():
    return draw(B, H, L, C, seed=1), draw(B, K, L, C, seed=2), draw(B, K, L, C, seed=3)


def test_causal_mask_by_hand():
    expected = np.array(
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [0, 0, 0, 1, 0, 0],
            [0, 0, 0, 1, 1, 0],
            [0, 0, 0, 0, 0, 1],
        ],
        bool,
    )
    mask = causal_mask(6, SEGMENTS)
    assert mask.shape == (2, 1, 6, 6)
    np.testing.assert_array_equal(mask[0, 0], expected)
    np.testing.assert_array_equal(mask[1, 0], np.tril(np.ones((6, 6), bool)))
    np.testing.assert_array_equal(causal_mask(6)[0, 0], np.tril(np.ones((6, 6), bool)))


def test_reference_equals_loops(qkv):
    q, k, v = (np.asarray(x, np.float64) for x in qkv)
    mask = np.asarray(causal_mask(L, SEGMENTS))
    expected = np.zeros(q.shape)
    for b in range(B):
        for h in range(H):
            for i in range(L):
                seen = np.flatnonzero(mask[b, 0, i])
                scores = [q[b, h, i] @ k[b, h // 2, j] / np.sqrt(C) for j in seen]
                weights = np.exp(scores) / np.exp(scores).sum()
                expected[b, h, i] = sum(w * v[b, h // 2, j] for w, j in zip(weights, seen, strict=True))
    ours = reference_attention(*qkv, causal_mask(L, SEGMENTS), "float32")
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["causal", "segments"])
def test_xla_equals_reference_with_gradients(qkv, segments):
    mask, direction = causal_mask(L, segments), draw(B, H, L, C, seed=4)

    def pull(attention, *more):
        def scalar(q, k, v):
            return (attention(q, k, v, mask, "float32", *more) * direction).sum()

        return jax.jit(jax.value_and_grad(scalar, (0, 1, 2)))(*qkv)

    fused, plain = pull(fused_attention, "xla"), pull(reference_attention)
    # Two orders of summation of float32 numbers of size 1 to 10.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-6), fused, plain)


def test_an_unavailable_implementation_is_an_error(qkv):
    """cudnn needs an NVIDIA GPU; on a CPU it must not fall back to another implementation."""
    with pytest.raises((ValueError, RuntimeError)):
        fused_attention(*qkv, causal_mask(L), "bfloat16", "cudnn").block_until_ready()


def test_grouped_heads_equal_repeated_heads(qkv):
    q, k, v = qkv
    mask = causal_mask(L, SEGMENTS)
    grouped = reference_attention(q, k, v, mask, "float32")
    repeated = reference_attention(q, jnp.repeat(k, 2, 1), jnp.repeat(v, 2, 1), mask, "float32")
    np.testing.assert_allclose(grouped, repeated, rtol=1e-6, atol=1e-6)


def test_a_query_that_sees_nothing_is_finite(qkv):
    mask = causal_mask(L).at[:, :, 2].set(False)
    value, gradient = jax.value_and_grad(lambda q: reference_attention(q, *qkv[1:], mask, "float32").sum())(
        qkv[0]
    )
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_large_scores_do_not_overflow(qkv):
    q, k, v = qkv
    out = reference_attention(1e4 * q, 1e4 * k, v, causal_mask(L), "float32")
    # At such scores the softmax picks one key; every output is one of the values.
    nearest = np.abs(np.asarray(out)[:, :, :, None] - np.repeat(v, 2, 1)[:, :, None]).max(-1).min(-1)
    assert nearest.max() < 1e-5


def test_rotary_by_hand():
    """Two channels at position p turn by p radians; the second pair of four by p / 100."""
    cos, sin = rotary_angles(jnp.asarray([[3]]), 4, 10_000.0)
    np.testing.assert_allclose(cos[0, 0], np.cos([3, 0.03]), rtol=1e-6)
    np.testing.assert_allclose(sin[0, 0], np.sin([3, 0.03]), rtol=1e-6)
    x = jnp.asarray([1.0, 0.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
    np.testing.assert_allclose(
        apply_rotary(x, cos, sin, "half").ravel(), [np.cos(3), 0, np.sin(3), 0], atol=1e-7
    )
    turned = apply_rotary(x, cos, sin, "interleaved").ravel()
    np.testing.assert_allclose(turned, [np.cos(3), np.sin(3), 0, 0], atol=1e-7)


def test_pairings_differ_by_a_permutation_of_channels():
    x, order = draw(B, H, L, C), np.arange(C).reshape(2, C // 2).T.ravel()  # 0, 4, 1, 5, ...
    angles = rotary_angles(jnp.arange(L)[None], C, 10_000.0)
    half = apply_rotary(x, *angles, "half")
    interleaved = apply_rotary(x[..., order], *angles, "interleaved")
    np.testing.assert_allclose(interleaved, half[..., order], rtol=1e-6)
    assert np.abs(np.asarray(apply_rotary(x, *angles, "interleaved") - half)).max() > 0.1


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_rotary_scores_depend_on_distance_alone(pairing):
    q, k = draw(B, H, L, C, seed=1), draw(B, H, L, C, seed=2)

    def scores(offset):
        angles = rotary_angles(jnp.arange(L)[None] + offset, C, 10_000.0)
        turned = (apply_rotary(x, *angles, pairing) for x in (q, k))
        return np.einsum("bhlc,bhsc->bhls", *turned)

    # A float32 angle of 1,000 radians is exact to 6e-5.
    np.testing.assert_allclose(scores(1000), scores(0), atol=1e-3)
    assert np.abs(scores(0) - np.einsum("bhlc,bhsc->bhls", q, k)).max() > 0.5


def test_rotary_keeps_lengths():
    x = draw(B, H, L, C)
    turned = apply_rotary(x, *rotary_angles(jnp.arange(L)[None], C, 10_000.0), "half")
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6)


def test_rotary_angles_are_float32_exact_at_long_contexts():
    positions = jnp.asarray([[2_047, 131_071]])
    cos, _ = rotary_angles(positions, 128, 500_000.0)
    frequency = 500_000.0 ** (-np.arange(0, 128, 2) / 128)
    expected = np.cos(np.asarray(positions, np.float64)[..., None] * frequency)
    # An angle a is known to a * 2^-23 twice: in the frequency and in the product.
    np.testing.assert_allclose(cos[0, 0], expected[0, 0], atol=2047 * 2**-22)
    np.testing.assert_allclose(cos[0, 1], expected[0, 1], atol=131_071 * 2**-22)
