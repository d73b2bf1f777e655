import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gptjax.losses.lm import cross_entropy, entropy, linear_cross_entropy, token_log_probs

B, L, D, V = 3, 5, 4, 11

# One compilation a function instead of one an operation.
entropy, token_log_probs = jax.jit(entropy, static_argnums=1), jax.jit(token_log_probs, static_argnums=2)
cross_entropy = jax.jit(cross_entropy)
linear_cross_entropy = jax.jit(
    linear_cross_entropy, static_argnames=("z_loss", "chunk_size", "matmul_dtype", "transposed")
)


def sample(seed=0, batch=B, length=L, width=D, vocabulary=V):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(batch, length, width)).astype(np.float32)
    unembedding = rng.normal(size=(width, vocabulary)).astype(np.float32)
    targets = rng.integers(0, vocabulary, (batch, length))
    # Every other token is predicted rightly, so that the accuracy is neither 0 nor 1.
    targets[:, ::2] = np.argmax(hidden @ unembedding, -1)[:, ::2]
    mask = (rng.random((batch, length)) < 0.7).astype(np.float32)
    return jnp.asarray(hidden), jnp.asarray(unembedding), jnp.asarray(targets, jnp.int32), jnp.asarray(mask)


def numpy_nll(logits, targets):
    logits = np.asarray(logits, np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    return log_z - np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0], log_z


def test_log_probs_by_hand_and_at_a_temperature():
    logits = jnp.array([[[0.0, math.log(3.0)]]])
    np.testing.assert_allclose(token_log_probs(logits, jnp.array([[1]])), [[math.log(0.75)]], rtol=1e-6)
    # Halving the temperature squares the odds: 9 to 1.
    np.testing.assert_allclose(token_log_probs(logits, jnp.array([[1]]), 0.5), [[math.log(0.9)]], rtol=1e-6)


def test_log_probs_are_float32_and_shift_invariant():
    hidden, unembedding, targets, _ = sample()
    logits = hidden @ unembedding
    log_probs = token_log_probs(logits, targets)
    np.testing.assert_allclose(log_probs, -numpy_nll(logits, targets)[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(token_log_probs(logits + 100, targets), log_probs, rtol=0, atol=3e-5)
    assert token_log_probs(logits.astype(jnp.bfloat16), targets).dtype == jnp.float32


@pytest.mark.parametrize("function", [lambda x, t: token_log_probs(x, jnp.array([0]), t), entropy])
@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, math.nan])
def test_a_temperature_not_above_zero_is_refused(function, temperature):
    with pytest.raises(ValueError, match="must be above 0"):
        function(jnp.zeros((1, 3)), temperature)


@pytest.mark.parametrize("target", [V, V + 7, -1, -100])
def test_a_target_outside_the_vocabulary_is_not_taken_for_another(target):
    hidden, unembedding, targets, _ = sample()
    targets, mask = targets.at[0, 0].set(target), jnp.ones((B, L))
    assert jnp.isnan(token_log_probs(hidden @ unembedding, targets)[0, 0])
    assert jnp.isnan(cross_entropy(hidden @ unembedding, targets, mask)[0])
    assert jnp.isnan(linear_cross_entropy(hidden, unembedding, targets, mask)[0])
    assert jnp.isfinite(cross_entropy(hidden @ unembedding, targets, mask.at[0, 0].set(0))[0])


def test_entropy_of_known_distributions():
    np.testing.assert_allclose(entropy(jnp.zeros(4)), math.log(4), rtol=1e-6)
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    np.testing.assert_allclose(entropy(jnp.log(jnp.array([0.25, 0.75]))), expected, rtol=1e-6)
    np.testing.assert_allclose(
        entropy(jnp.array([0.0, math.log(3.0)]), 0.5), -(0.1 * math.log(0.1) + 0.9 * math.log(0.9)), rtol=1e-6
    )


def test_entropy_of_forbidden_tokens_is_finite_with_its_gradient():
    logits = jnp.array([1.0, 2.0, -jnp.inf])
    value, gradient = jax.value_and_grad(entropy)(logits)
    expected, expected_gradient = jax.value_and_grad(entropy)(logits[:2])
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, [*expected_gradient, 0], rtol=1e-5, atol=1e-7)


def test_cross_entropy_matches_numpy():
    hidden, unembedding, targets, mask = sample()
    logits = hidden @ unembedding
    loss, metrics = cross_entropy(logits, targets, mask, z_loss=0.01)
    nll, log_z = numpy_nll(logits, targets)
    count = float(mask.sum())
    np.testing.assert_allclose(metrics["loss"], (nll * mask).sum() / count, rtol=1e-5)
    np.testing.assert_allclose(metrics["z_loss"], 0.01 * (log_z**2 * mask).sum() / count, rtol=1e-5)
    np.testing.assert_allclose(loss, metrics["loss"] + metrics["z_loss"], rtol=1e-6)
    right = (np.argmax(logits, -1) == targets) * mask
    np.testing.assert_allclose(metrics["accuracy"], right.sum() / count, rtol=1e-6)
    assert 0 < right.sum() < count, "the sample must hold right and wrong tokens"


def test_accuracy_of_a_model_that_prefers_nothing_is_zero():
    _, metrics = cross_entropy(jnp.zeros((1, 2, 3)), jnp.array([[0, 1]]), jnp.ones((1, 2)))
    assert metrics["accuracy"] == 0


@pytest.mark.parametrize("form", ["whole", "chunked"])
def test_masked_tokens_do_not_matter_whatever_they_hold(form):
    hidden, unembedding, targets, mask = sample()
    masked = mask == 0
    assert masked.any()

    def loss(hidden, targets):
        if form == "whole":
            return cross_entropy(hidden @ unembedding, targets, mask, z_loss=0.1)[0]
        return linear_cross_entropy(hidden, unembedding, targets, mask, z_loss=0.1, chunk_size=4)[0]

    expected = jax.jit(jax.value_and_grad(loss))(hidden, targets)
    poisoned = jnp.where(masked[..., None], jnp.nan, hidden)
    value, gradient = jax.jit(jax.value_and_grad(loss))(poisoned, jnp.where(masked, -100, targets))
    assert value == expected[0]
    np.testing.assert_array_equal(gradient, expected[1])


@pytest.mark.parametrize("form", ["whole", "chunked"])
def test_no_token_gives_zero_and_no_gradient(form):
    hidden, unembedding, targets, mask = sample()

    def loss(hidden):
        if form == "whole":
            return cross_entropy(hidden @ unembedding, targets, 0 * mask)[0]
        return linear_cross_entropy(hidden, unembedding, targets, 0 * mask)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(hidden)
    assert value == 0
    np.testing.assert_array_equal(gradient, jnp.zeros_like(hidden))


@pytest.mark.parametrize("form", ["whole", "chunked"])
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_with_different_token_counts_add_up(form, parts):
    hidden, unembedding, targets, mask = sample(batch=8)
    counts = mask.reshape(parts, -1).sum(1)
    assert len(set(counts.tolist())) > 1, "parts of equal size would hide a mean of means"

    def loss(unembedding, hidden, targets, mask, denominator):
        if form == "whole":
            return cross_entropy(hidden @ unembedding, targets, mask, z_loss=0.1, denominator=denominator)
        return linear_cross_entropy(
            hidden, unembedding, targets, mask, z_loss=0.1, chunk_size=6, denominator=denominator
        )

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    whole = step(unembedding, hidden, targets, mask, None)
    pieces = zip(*(jnp.split(x, parts) for x in (hidden, targets, mask)), strict=True)
    total = jax.tree.map(lambda *x: sum(x), *[step(unembedding, *piece, mask.sum()) for piece in pieces])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), total, whole)


def naive(hidden, unembedding, targets, mask, z_loss):
    """Plain autodiff of the textbook form, without anything from the code under test."""
    logits = hidden @ unembedding
    log_probs = jax.nn.log_softmax(logits, -1)
    nll = -jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    log_z = jnp.log(jnp.sum(jnp.exp(logits), -1))
    return jnp.sum(mask * (nll + z_loss * log_z**2)) / jnp.sum(mask)


@pytest.mark.parametrize("chunk_size", [1, 2, 4, 7, 15, 1024])
@pytest.mark.parametrize("transposed", [False, True])
def test_chunked_equals_plain_autodiff(chunk_size, transposed):
    hidden, unembedding, targets, mask = sample()
    expected = jax.jit(jax.value_and_grad(naive, (0, 1)))(hidden, unembedding, targets, mask, 0.01)

    def loss(hidden, unembedding):
        table = unembedding.T if transposed else unembedding
        options = {"z_loss": 0.01, "chunk_size": chunk_size, "transposed": transposed}
        # The factor 3 shows that the cotangent scales the gradients made in the forward pass.
        return 3 * linear_cross_entropy(hidden, table, targets, mask, **options)[0]

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, unembedding)
    np.testing.assert_allclose(value, 3 * expected[0], rtol=1e-6)
    np.testing.assert_allclose(loss(hidden, unembedding), value, rtol=1e-6)
    for gradient, reference in zip(gradients, expected[1], strict=True):
        np.testing.assert_allclose(gradient, 3 * reference, rtol=1e-5, atol=1e-6)


def test_chunked_metrics_equal_whole_ones():
    hidden, unembedding, targets, mask = sample()
    whole = cross_entropy(hidden @ unembedding, targets, mask, z_loss=0.1)
    chunked = linear_cross_entropy(hidden, unembedding, targets, mask, z_loss=0.1, chunk_size=4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), chunked, whole)


def test_chunked_gradient_against_finite_differences_in_float64():
    with jax.enable_x64(True):
        hidden, unembedding, targets, mask = (
            x.astype(jnp.float64) if x.dtype == jnp.float32 else x for x in sample()
        )

        def loss(hidden, unembedding):
            options = {"z_loss": 0.1, "chunk_size": 4, "matmul_dtype": jnp.float64}
            return linear_cross_entropy(hidden, unembedding, targets, mask, **options)[0]

        gradients = jax.jit(jax.grad(loss, (0, 1)))(hidden, unembedding)
        rng = np.random.default_rng(3)
        for _ in range(3):
            directions = [jnp.asarray(rng.normal(size=x.shape)) for x in (hidden, unembedding)]
            ahead, behind = (
                loss(hidden + h * directions[0], unembedding + h * directions[1]) for h in (1e-5, -1e-5)
            )
            slope = sum(jnp.vdot(g, d) for g, d in zip(gradients, directions, strict=True))
            # Central differences err by h^2 = 1e-10 and by rounding 1e-16 / h = 1e-11.
            np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-7)


def test_chunked_with_bfloat16_factors_keeps_float32_gradients():
    hidden, unembedding, targets, mask = sample(batch=8, length=16, width=32, vocabulary=64)
    unembedding = unembedding / 32**0.5
    expected = jax.jit(jax.value_and_grad(naive, (0, 1)))(hidden, unembedding, targets, mask, 0.0)

    def loss(hidden, unembedding):
        return linear_cross_entropy(hidden, unembedding, targets, mask, matmul_dtype=jnp.bfloat16)[0]

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, unembedding)
    assert [g.dtype for g in (value, *gradients)] == [jnp.float32] * 3
    # bfloat16 has 8 bits: relative rounding of 2^-9 per factor.
    np.testing.assert_allclose(value, expected[0], rtol=4e-3)
    for gradient, reference in zip(gradients, expected[1], strict=True):
        assert jnp.linalg.norm(gradient - reference) < 0.01 * jnp.linalg.norm(reference)
    half = jax.jit(jax.grad(loss, (0, 1)))(hidden.astype(jnp.bfloat16), unembedding)
    assert [g.dtype for g in half] == [jnp.bfloat16, jnp.float32]


def largest_logits(function, *arguments):
    """The most elements held by an array with a vocabulary axis, anywhere in the traced program."""
    sizes = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            sizes.extend(v.aval.size for v in equation.outvars if 1009 in getattr(v.aval, "shape", ()))
            jax.tree.map(visit, list(jaxprs_in_params(equation.params)))

    visit(jax.make_jaxpr(function)(*arguments).jaxpr)
    return max(sizes)


def test_chunked_never_holds_the_logits_of_the_batch():
    hidden, unembedding, targets, mask = sample(batch=8, length=64, width=8, vocabulary=1009)

    def whole(hidden, unembedding):
        return cross_entropy(hidden @ unembedding, targets, mask)[0]

    def chunked(hidden, unembedding):
        return linear_cross_entropy(hidden, unembedding, targets, mask, chunk_size=32)[0]

    def temporary_bytes(function):
        compiled = jax.jit(function).lower(hidden, unembedding).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    gradients = [jax.value_and_grad(function, (0, 1)) for function in (whole, chunked)]
    for form in (whole, gradients[0]):
        assert largest_logits(form, hidden, unembedding) == 8 * 64 * 1009
        assert temporary_bytes(form) >= 4 * 8 * 64 * 1009
    for form in (chunked, gradients[1]):
        assert largest_logits(form, hidden, unembedding) == 32 * 1009
        assert temporary_bytes(form) < 4 * 8 * 64 * 1009 / 4


def test_undifferentiated_chunked_loss_makes_no_gradient():
    hidden, unembedding, targets, mask = sample()

    def loss(hidden):
        return linear_cross_entropy(hidden, unembedding, targets, mask)[0]

    assert str(jax.make_jaxpr(loss)(hidden)).count("dot_general") == 1
    assert str(jax.make_jaxpr(jax.grad(loss))(hidden)).count("dot_general") == 3


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_chunked_does_not_depend_on_the_number_of_devices(devices):
    hidden, unembedding, targets, mask = sample(batch=16, length=32, width=16, vocabulary=64)

    def loss(hidden, unembedding, targets, mask):
        return linear_cross_entropy(hidden, unembedding, targets, mask, chunk_size=128)[0]

    step = jax.value_and_grad(loss, (0, 1))
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    arguments = [jax.device_put(x, rows) for x in (hidden, targets, mask)]
    arguments.insert(1, jax.device_put(unembedding, everywhere))
    compiled = jax.jit(step, out_shardings=(everywhere, (rows, everywhere))).lower(*arguments).compile()
    assert "all-gather" not in compiled.as_text(), "the rows of the batch should stay where they are"
    result, expected = compiled(*arguments), step(hidden, unembedding, targets, mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), result, expected)


def test_a_chunk_holds_at_least_one_token():
    with pytest.raises(ValueError, match="chunk_size is 0"):
        linear_cross_entropy(*sample(), chunk_size=0)
