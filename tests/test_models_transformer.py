"""The decoder against an independent forward pass in numpy, and its invariances."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.models.families import gpt2, llama
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel, ScalarModel
from gptjax.models.layers import LayerNorm, RMSNorm, dropout

TINY = {"vocab_size": 37, "context_length": 12, "width": 16, "layers": 2, "heads": 4}
CONFIGS = {
    "gpt2": gpt2("124M", **TINY),
    "llama": llama("7B", **TINY, kv_heads=2, mlp_width=24),
}
TOKENS = jnp.asarray(np.random.default_rng(7).permutation(37)[:24].reshape(2, 12), jnp.int32)


def define(config, module=LanguageModel, seed=0):
    """A model and parameters of a size at which every part of it shows in the output."""
    definition, rng = ModelDefinition(module, config), np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), jnp.float32), definition.abstract
    )
    return definition, params


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS.keys())
def model(request):
    return define(request.param)


@pytest.fixture(scope="module")
def logits(model):
    definition, params = model
    return jax.jit(definition.apply)(params, TOKENS)


def loss_and_gradient(config, params, key=None):
    definition, direction = ModelDefinition(LanguageModel, config), np.random.default_rng(3).normal(size=37)

    def loss(params):
        log_probs = jax.nn.log_softmax(definition.apply(params, TOKENS, key=key))
        return (log_probs * direction).mean()

    return jax.jit(jax.value_and_grad(loss))(params)


def assert_trees_close(ours, theirs, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, theirs)


def numpy_norm(x, norm, config):
    if config.norm == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * norm["scale"] + norm.get(
        "bias", 0
    )


def numpy_rotary(x_LxHxC, theta=10_000.0):
    """Rotation as multiplication of complex numbers."""
    L, _, C = x_LxHxC.shape
    z = x_LxHxC[..., : C // 2] + 1j * x_LxHxC[..., C // 2 :]
    z = z * np.exp(1j * np.arange(L)[:, None] * theta ** (-2 * np.arange(C // 2) / C))[:, None]
    return np.concatenate([z.real, z.imag], -1)


def numpy_attention(x, p, config):
    L, heads = len(x), config.heads
    linear = {n: x @ p[n]["kernel"] + p[n].get("bias", 0) for n in ("query", "key", "value")}
    q, k, v = (y.reshape(L, -1, 16 // heads) for y in linear.values())
    if config.positions == "rotary":
        q, k = numpy_rotary(q), numpy_rotary(k)
    out = np.zeros((L, heads, 16 // heads))
    for h in range(heads):
        shared = h * k.shape[1] // heads
        for i in range(L):
            weights = np.exp(k[: i + 1, shared] @ q[i, h] / np.sqrt(16 / heads))
            out[i, h] = weights / weights.sum() @ v[: i + 1, shared]
    return out.reshape(L, 16) @ p["output"]["kernel"] + p["output"].get("bias", 0)


def numpy_mlp(x, p, config):
    up = x @ p["up"]["kernel"] + p["up"].get("bias", 0)
    if config.activation == "swiglu":
        gate = x @ p["gate"]["kernel"]
        inner = gate / (1 + np.exp(-gate)) * up
    else:
        inner = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
    return inner @ p["down"]["kernel"] + p["down"].get("bias", 0)


def numpy_logits(params, config, tokens_L):
    """GPT-2's and LLaMA's forward pass, one row, float64, written from the papers."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    decoder = params["decoder"]
    x = decoder["embedding"][tokens_L]
    if config.positions == "learned":
        x = x + decoder["positions"][: len(tokens_L)]
    for i in range(config.layers):
        p = jax.tree.map(lambda a, i=i: a[i], decoder["blocks"])
        x = x + numpy_attention(numpy_norm(x, p["attention_norm"], config), p["attention"], config)
        x = x + numpy_mlp(numpy_norm(x, p["mlp_norm"], config), p["mlp"], config)
    return numpy_norm(x, decoder["norm"], config) @ params.get("unembedding", decoder["embedding"].T)


def test_forward_equals_numpy(model, logits):
    definition, params = model
    for row in range(2):
        expected = numpy_logits(params, definition.config, np.asarray(TOKENS[row]))
        np.testing.assert_allclose(logits[row], expected, rtol=1e-4, atol=2e-5)


def test_gradient_causality(model):
    """The tokens of a row are all different, so a row of the embedding's gradient belongs to one position."""
    definition, params = model
    direction = jnp.asarray(np.random.default_rng(1).normal(size=16), jnp.float32)

    def outputs(embedding):
        changed = params | {"decoder": params["decoder"] | {"embedding": embedding}}
        hidden = definition.bind(changed).hidden(TOKENS[:1])
        return (hidden @ direction)[0]

    jacobian_LxVxD = jax.jit(jax.jacrev(outputs))(params["decoder"]["embedding"])
    reach_LxL = np.abs(jacobian_LxVxD[:, TOKENS[0]]).max(-1)
    assert (reach_LxL[np.triu_indices(12, 1)] == 0).all()
    assert (reach_LxL[np.tril_indices(12)] > 0).all()


@pytest.fixture(scope="module")
def dropped_out():
    config = dataclasses.replace(CONFIGS["gpt2"], dropout=0.2)
    _, params = define(config)
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles in a third of the default generator's time
    return config, params, key, loss_and_gradient(config, params, key)


@pytest.mark.parametrize(("loop", "remat"), [("unroll", "none"), ("scan", "dots"), ("scan", "full")])
def test_loops_and_rematerialisation_change_nothing(dropped_out, loop, remat):
    """The same loss and gradient, dropout included: the masks are recomputed from the same keys."""
    config, params, key, plain = dropped_out
    other = loss_and_gradient(dataclasses.replace(config, loop=loop, remat=remat), params, key)
    assert_trees_close(other, plain)


def test_scan_equals_loop_and_xla_attention_equals_reference_in_llama():
    config = CONFIGS["llama"]
    _, params = define(config)
    plain = loss_and_gradient(config, params)
    other = loss_and_gradient(dataclasses.replace(config, loop="unroll", attention="xla"), params)
    assert_trees_close(other, plain)


def test_packed_equals_unpacked(model):
    definition, params = model
    pair = TOKENS[:, :5]
    row = jnp.concatenate([*pair, jnp.zeros(2, jnp.int32)])[None]
    segments = jnp.asarray([[1] * 5 + [2] * 5 + [0] * 2])
    positions = jnp.asarray([[*range(5), *range(5), 0, 1]])

    def packed(params):
        return definition.apply(params, row, segment_ids=segments, positions=positions)[0, :10]

    def alone(params):
        return definition.apply(params, pair).reshape(10, 37)

    direction = np.random.default_rng(5).normal(size=(10, 37))

    def pull(logits_of):
        def loss(params):
            logits = logits_of(params)
            return (jax.nn.log_softmax(logits) * direction).mean(), logits

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    assert_trees_close(pull(packed), pull(alone), rtol=1e-5, atol=3e-6)


def test_padding_is_never_read(model, logits):
    definition, params = model
    segments = jnp.asarray([[1] * 9 + [0] * 3] * 2)
    apply = jax.jit(definition.apply)
    padded = [apply(params, TOKENS.at[:, 9:].set(pad), segment_ids=segments)[:, :9] for pad in (0, 21)]
    np.testing.assert_array_equal(*padded)
    np.testing.assert_allclose(padded[0], logits[:, :9], rtol=1e-5, atol=1e-5)


def test_pairings_are_one_model_up_to_the_channels_of_queries_and_keys(logits, model):
    definition, params = model
    if definition.config.positions != "rotary":
        pytest.skip("learned positions have no pairing")
    order = np.arange(4).reshape(2, 2).T.ravel()
    blocks = params["decoder"]["blocks"]
    attention = dict(blocks["attention"])
    for name in ("query", "key"):
        kernel = attention[name]["kernel"]
        heads = kernel.reshape(2, 16, -1, 4)[..., order]
        attention[name] = {"kernel": heads.reshape(kernel.shape)}
    changed = params["decoder"] | {"blocks": blocks | {"attention": attention}}
    config = dataclasses.replace(definition.config, rotary_pairing="interleaved")
    other = ModelDefinition(LanguageModel, config).apply(params | {"decoder": changed}, TOKENS)
    np.testing.assert_allclose(other, logits, rtol=1e-5, atol=1e-5)


def test_tied_logits_use_the_embedding():
    definition, params = define(CONFIGS["gpt2"])
    assert "unembedding" not in params
    hidden = definition.bind(params).hidden(TOKENS)
    expected = np.asarray(hidden) @ np.asarray(params["decoder"]["embedding"]).T
    np.testing.assert_allclose(definition.apply(params, TOKENS), expected, rtol=1e-5, atol=1e-5)
    matrix, transposed = definition.bind(params).output_matrix()
    assert transposed
    np.testing.assert_array_equal(matrix, params["decoder"]["embedding"])


def test_bfloat16_products_leave_float32_logits_close(model, logits):
    definition, params = model
    config = dataclasses.replace(definition.config, compute_dtype="bfloat16")
    rounded = ModelDefinition(LanguageModel, config).apply(params, TOKENS)
    assert rounded.dtype == jnp.float32
    # About a dozen products in a row, each wrong by 2^-8 of its size.
    error = np.abs(rounded - logits).max() / np.abs(logits).max()
    assert 1e-5 < error < 0.05


def test_a_row_beyond_the_context_is_refused():
    definition, params = define(CONFIGS["gpt2"])
    with pytest.raises(ValueError, match="13 tokens exceed the context length of 12"):
        definition.apply(params, jnp.zeros((1, 13), jnp.int32))


def test_dropout_needs_a_key_and_keeps_the_mean():
    x, key = jnp.full((200, 500), 3.0), jax.random.key(0)
    assert dropout(x, 0.3, None) is x
    assert dropout(x, 0.0, key) is x
    dropped = np.asarray(dropout(x, 0.3, key))
    np.testing.assert_allclose(np.unique(dropped), [0, 3 / 0.7], rtol=1e-6)
    # 100,000 draws: the share of zeros is within 0.0015 (one deviation) of the rate.
    assert abs((dropped == 0).mean() - 0.3) < 0.006
    assert abs(dropped.mean() - 3) < 0.03


def test_a_model_drops_out_only_with_a_key():
    config = CONFIGS["gpt2"]
    definition, params = define(dataclasses.replace(config, dropout=0.5))
    apply = jax.jit(definition.apply)
    without = ModelDefinition(LanguageModel, config).apply(params, TOKENS)
    np.testing.assert_allclose(apply(params, TOKENS), without, rtol=1e-6, atol=1e-6)
    first, again, other = (apply(params, TOKENS, key=jax.random.key(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_norms_by_hand():
    x = jnp.asarray([[1.0, 3.0]])
    np.testing.assert_allclose(LayerNorm(2, 0.0)(x), [[-1, 1]], rtol=1e-6)
    np.testing.assert_allclose(RMSNorm(2, 0.0)(x), [[1 / 5**0.5, 3 / 5**0.5]], rtol=1e-6)
    # The epsilon stands under the root, added to the variance.
    np.testing.assert_allclose(LayerNorm(2, 3.0)(x), [[-0.5, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(RMSNorm(2, 4.0)(x), [[1 / 3, 1]], rtol=1e-6)


def test_layer_norm_survives_a_large_mean():
    x = jnp.asarray([[10_000.0, 10_001.0]])
    np.testing.assert_allclose(LayerNorm(2, 0.0)(x), [[-1, 1]], rtol=1e-6)


def test_scalar_model_reads_its_head_in_float32():
    config = dataclasses.replace(CONFIGS["llama"], compute_dtype="bfloat16")
    definition, params = define(config, ScalarModel)
    hidden = definition.bind(params).decoder(TOKENS)
    expected = np.asarray(hidden, np.float64) @ np.asarray(params["head"])[:, 0] + np.asarray(params["bias"])
    scalars = definition.apply(params, TOKENS)
    assert (scalars.shape, scalars.dtype) == ((2, 12), jnp.float32)
    np.testing.assert_allclose(scalars, expected, rtol=1e-5, atol=1e-5)
