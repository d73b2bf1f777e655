import doctest
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.losses.masked import (
    keep,
    masked_mean,
    masked_sum,
    masked_variance,
    masked_whiten,
    require_float,
    token_weights,
)

X = jnp.array([1.0, 2.0, 3.0, 4.0])
MASK = jnp.array([0, 1, 1, 0])


@pytest.mark.parametrize(
    "module", ["masked", "lm", "ranking", "rewards", "ppo", "preference", "odds", "group_advantages"]
)
def test_every_public_loss_has_an_example_that_runs(module):
    module = importlib.import_module(f"gptjax.losses.{module}")
    functions = [f for f in vars(module).values() if getattr(f, "__module__", "") == module.__name__]
    public = [f.__name__ for f in functions if not f.__name__.startswith("_")]
    assert public
    for name in public:
        assert "Example:" in getattr(module, name).__doc__, f"{name} has no example"
    results = doctest.testmod(module)
    assert results.attempted >= len(public)
    assert results.failed == 0


def test_golden_of_two_kept_elements():
    assert masked_sum(X, MASK) == 5
    assert masked_mean(X, MASK) == 2.5
    assert masked_variance(X, MASK) == 0.25
    assert masked_variance(X, MASK, bessel=True) == 0.5
    np.testing.assert_allclose(masked_whiten(X, MASK), [0, -1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(masked_whiten(X, MASK, shift_mean=False), [0, 1.5, 3.5, 0], atol=1e-6)
    np.testing.assert_allclose(masked_whiten(X, MASK, bessel=True), [0, -(0.5**0.5), 0.5**0.5, 0], atol=1e-6)


def test_statistics_match_numpy_on_the_kept_elements():
    rng = np.random.default_rng(0)
    x, mask = rng.normal(3, 2, (5, 7)).astype(np.float32), rng.random((5, 7)) < 0.6
    kept = x[mask].astype(np.float64)
    np.testing.assert_allclose(masked_sum(x, mask), kept.sum(), rtol=1e-6)
    np.testing.assert_allclose(masked_mean(x, mask), kept.mean(), rtol=1e-6)
    np.testing.assert_allclose(masked_variance(x, mask), kept.var(), rtol=1e-5)
    np.testing.assert_allclose(masked_variance(x, mask, bessel=True), kept.var(ddof=1), rtol=1e-5)
    whitened = (kept - kept.mean()) / np.sqrt(kept.var() + 1e-8)
    np.testing.assert_allclose(masked_whiten(x, mask)[mask], whitened, rtol=1e-5, atol=1e-6)
    rows = [row[keep_row].mean() if keep_row.any() else 0 for row, keep_row in zip(x, mask, strict=True)]
    np.testing.assert_allclose(masked_mean(x, mask, axis=1), rows, rtol=1e-5)
    rows = [row[keep_row].var() for row, keep_row in zip(x, mask, strict=True)]
    np.testing.assert_allclose(masked_variance(x, mask, axis=1), rows, rtol=1e-5, atol=1e-6)


def test_a_mask_may_hold_weights():
    assert masked_mean(X, jnp.array([0.0, 3.0, 1.0, 0.0])) == 2.25
    # mean 2.25: (3 * 0.25^2 + 0.75^2) / 4
    np.testing.assert_allclose(masked_variance(X, jnp.array([0.0, 3.0, 1.0, 0.0])), 0.1875, rtol=1e-6)


def test_a_mask_broadcasts_and_counts_what_it_covers():
    x = jnp.arange(6.0).reshape(2, 3)
    assert masked_mean(x, jnp.array([1, 0, 1])) == 2.5
    assert masked_mean(x, jnp.array([[0], [1]])) == 4


@pytest.mark.parametrize("reduction", [masked_sum, masked_mean, masked_variance, masked_whiten])
@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf, -jnp.inf])
def test_poison_under_the_mask_reaches_neither_value_nor_gradient(reduction, poison):
    poisoned, clean = X.at[0].set(poison), X.at[0].set(0)
    weights = jnp.array([1.0, 2.0, 3.0, 4.0])

    def scalar(x):
        return jnp.sum(weights * reduction(x, MASK))

    value, gradient = jax.value_and_grad(scalar)(poisoned)
    expected_value, expected_gradient = jax.value_and_grad(scalar)(clean)
    assert value == expected_value
    assert jnp.isfinite(gradient).all() and gradient[0] == 0
    np.testing.assert_array_equal(gradient, expected_gradient)


def test_masking_the_input_stops_an_infinite_derivative():
    def root(x, guard):
        return masked_sum(jnp.sqrt(guard(x)), MASK)

    x = X.at[0].set(-1.0)
    assert jnp.isnan(jax.grad(root)(x, lambda x: x)[0])
    assert jax.grad(root)(x, lambda x: jnp.where(MASK != 0, x, 1.0))[0] == 0
    assert keep(x, MASK)[0] == 0


@pytest.mark.parametrize("reduction", [masked_sum, masked_mean, masked_variance, masked_whiten])
def test_an_empty_mask_gives_zero(reduction):
    def scalar(x):
        return jnp.sum(reduction(x, jnp.zeros(4)))

    value, gradient = jax.value_and_grad(scalar)(X)
    assert value == 0
    np.testing.assert_array_equal(gradient, jnp.zeros(4))


def test_one_element_has_no_sample_variance():
    assert masked_variance(X, jnp.array([0, 1, 0, 0]), bessel=True) == 0


def test_low_precision_is_summed_in_float32():
    ones = jnp.ones(1000, jnp.bfloat16)
    assert masked_sum(ones, ones).dtype == jnp.float32
    assert masked_sum(ones, ones) == 1000
    assert masked_mean(jnp.array([0, 1, 0, 0]), jnp.ones(4)) == 0.25


def test_means_of_parts_add_up_under_the_whole_count():
    rng = np.random.default_rng(1)
    x, mask = rng.normal(size=(8, 5)).astype(np.float32), rng.random((8, 5)) < 0.5
    whole = masked_mean(x, mask)
    for parts in (2, 4, 8):
        pieces = zip(np.split(x, parts), np.split(mask, parts), strict=True)
        total = sum(masked_mean(a, b, denominator=mask.sum()) for a, b in pieces)
        np.testing.assert_allclose(total, whole, rtol=1e-5)


AGGREGATES = {
    "token_mean": lambda rows: sum(map(sum, rows)) / sum(map(len, rows)),
    "seq_mean_token_mean": lambda rows: np.mean([np.mean(row) if row else 0.0 for row in rows]),
    "seq_mean_token_sum": lambda rows: np.mean([sum(row) for row in rows]),
    "seq_mean_token_sum_norm": lambda rows: np.mean([sum(row) for row in rows]) / 5,
}


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_an_aggregate_is_its_formula_however_the_batch_is_cut(aggregate):
    """Sequences of 1, 2, 3, 4 and no token."""
    rng = np.random.default_rng(2)
    x, lengths = rng.normal(size=(8, 5)).astype(np.float32), np.array([1, 2, 3, 4, 0, 4, 2, 1])
    mask = np.arange(5) < lengths[:, None]
    expected = AGGREGATES[aggregate]([row[:n].tolist() for row, n in zip(x, lengths, strict=True)])
    count = mask.sum() if aggregate == "token_mean" else len(mask)
    for parts in (1, 2, 8):
        pieces = zip(np.split(x, parts), np.split(mask, parts), strict=True)
        means = [masked_mean(a, token_weights(b, aggregate), denominator=count) for a, b in pieces]
        np.testing.assert_allclose(sum(means), expected, rtol=1e-5)


def test_an_unknown_aggregate_is_refused():
    with pytest.raises(ValueError, match="aggregate 'max' is unknown"):
        token_weights(jnp.ones((1, 2)), "max")


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_])
def test_integers_are_refused_as_rewards(dtype):
    with pytest.raises(TypeError, match="scores have dtype .* cannot hold 0.7"):
        require_float("scores", jnp.ones(2, dtype))
