"""The hand-written backward passes of the matrix products against automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.models.matmul import TransposedMatrix, matmul, scores_product, tied_logits, values_product

CASES = {
    "matmul": (matmul, lambda x, w: x @ w, (3, 5, 8), (8, 6)),
    "matmul of vectors": (matmul, lambda x, w: x @ w, (5, 8), (8, 6)),
    "tied logits": (tied_logits, lambda x, e: x @ e.T, (3, 5, 8), (64, 8)),
    "scores": (scores_product, lambda q, k: jnp.einsum("bhlc,bhsc->bhls", q, k), (2, 3, 5, 4), (2, 3, 7, 4)),
    "values": (values_product, lambda p, v: jnp.einsum("bhls,bhsc->bhlc", p, v), (2, 3, 5, 7), (2, 3, 7, 4)),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    product, reference, *shapes = request.param
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    cotangent = jnp.asarray(rng.normal(size=reference(a, b).shape), jnp.float32)
    return product, reference, a, b, cotangent


def test_float32_equals_autodiff(case):
    product, reference, a, b, cotangent = case
    ours, pull_ours = jax.vjp(lambda a, b: product(a, b, "float32"), a, b)
    theirs, pull_theirs = jax.vjp(reference, a, b)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    for mine, autodiff in zip(pull_ours(cotangent), pull_theirs(cotangent), strict=True):
        np.testing.assert_allclose(mine, autodiff, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_wrong_by_its_rounding_alone(case):
    """Rounding both factors of each product to 8 bits moves it by at most 2 * 2^-8 of its magnitude."""
    product, reference, a, b, cotangent = case
    ours, pull_ours = jax.vjp(lambda a, b: product(a, b, "bfloat16"), a, b)
    exact, pull_exact = jax.vjp(reference, a, b)
    magnitude, pull_magnitude = jax.vjp(reference, jnp.abs(a), jnp.abs(b))
    bound = 2.01 * 2.0**-8
    outputs = [(ours, exact, magnitude)]
    outputs += zip(
        pull_ours(cotangent), pull_exact(cotangent), pull_magnitude(jnp.abs(cotangent)), strict=True
    )
    for mine, true, size in outputs:
        assert mine.dtype == jnp.float32
        error = np.abs(mine - true)
        assert (error <= bound * size).all()
        assert error.max() > 1e-4, "the operands were not rounded at all"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_transposed_weight_gives_the_same_product(dtype):
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((1, 1, 8), (8, 6)))
    ours = TransposedMatrix(weight.T).after(x, dtype)
    np.testing.assert_allclose(ours, matmul(x, weight, dtype), rtol=1e-6, atol=1e-6)
    assert ours.dtype == jnp.float32


def test_bfloat16_operands_are_accumulated_in_float32():
    ones = jnp.ones((1, 1001))
    assert float(matmul(ones, ones.T, "bfloat16")[0, 0]) == 1001  # bfloat16 steps by 4 at this size


def test_float32_asks_accelerators_for_full_precision():
    x = jnp.ones((2, 2))
    program = str(jax.make_jaxpr(jax.grad(lambda x: matmul(x, x, "float32").sum()))(x))
    assert program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 3
    assert program.count("dot_general") == 3
