"""GLM's models: published sizes, what each token sees, positions, DeepNorm, and generation with a cache."""

import json
from functools import cache, partial

import glm_case
import jax
import jax.numpy as jnp
import lineage
import numpy as np
import pytest

from gptjax.config import ConfigError, from_json, to_json
from gptjax.data.infilling import stack_examples
from gptjax.generation.blanks import split_answers, write_blanks
from gptjax.generation.decode import left_pad, request_keys
from gptjax.generation.sampling import SamplingConfig
from gptjax.models.attention import prefix_mask
from gptjax.models.families import chatglm, glm, glm130b
from gptjax.models.functional import ModelDefinition, matmul_flops_per_token
from gptjax.models.glm import GLM, GLMConfig, shrink_gradient
from gptjax.models.rotary import apply_rotary, rotary_angles, rotary_angles_2d
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.sharding.rules import parameter_shardings

STYLES = list(glm_case.CONFIGS)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        # N (12 D^2 + 13 D) + (V + 2 C) D + 2 D: GPT-2's formula with a second table of positions.
        (glm("110M"), 109_283_328),
        (glm("335M"), 334_614_528),
        (glm("10B"), 9_880_481_792),
        # N (4 D^2 + 3 D F + 9 D + 2 F) + V D + 2 D
        (glm130b(), 128_697_794_560),
        (chatglm(), 6_173_286_400),
    ],
    ids=["110M", "335M", "10B", "130B", "6B"],
)
def test_parameter_counts_are_the_published_ones(config, count):
    assert ModelDefinition(GLM, config).parameter_count == count


@cache
def figures(name):
    return lineage.figures(glm_case.case(name))


@pytest.mark.parametrize("name", STYLES)
def test_logits_and_gradients_are_the_stored_ones_of_numpy(name):
    lineage.check_figures(name, *figures(name))


@pytest.mark.parametrize("name", ["glm", "glm130b"])
def test_one_device_equals_eight(name):
    definition, params, logits_of = glm_case.case(name)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = parameter_shardings(mesh, definition.abstract, definition.axes)
    placed = jax.tree.map(jax.device_put, params, shardings)
    assert sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(placed)) > 8
    with jax.set_mesh(mesh):
        spread = jax.jit(logits_of)(placed)
    for ours, alone in zip(spread, figures(name)[0], strict=True):
        np.testing.assert_allclose(ours, alone, rtol=1e-5, atol=1e-5)


def test_the_mask_of_a_prefix_by_hand():
    prefix = jnp.array([[True, True, False, False, True, False]])
    seen = prefix_mask(prefix, jnp.array([[1, 1, 1, 1, 2, 2]]))[0, 0].astype(int).tolist()
    assert seen == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]
    assert prefix_mask(prefix[:, :3])[0, 0].astype(int).tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("name", ["glm", "chatglm"])
def test_gradients_flow_from_part_a_and_from_earlier_tokens_of_part_b_alone(name):
    """d output of token i / d embedding of token j is 0 exactly where i may not see j."""
    definition, params, _ = glm_case.case(name)
    rows = glm_case.rows()
    tokens = jnp.arange(glm_case.L)[None]  # each id once, so that a row of the embedding is one place
    positions, segments = rows["positions"][1:], rows["segment_ids"][1:]

    def hidden(embedding):
        model = definition.bind(params | {"embedding": embedding})
        return (model.hidden(tokens, positions=positions, segment_ids=segments)[0] ** 3).sum(-1)

    influence = np.abs(jax.jit(jax.jacobian(hidden))(params["embedding"])[:, : glm_case.L]).sum(-1)
    in_a, own = positions[0, :, 1] == 0, segments[0][:, None] == segments[0][None]
    causal = np.tril(np.ones((glm_case.L, glm_case.L), bool))
    expected = own & (in_a[None, :] | (~in_a[:, None] & causal))
    np.testing.assert_array_equal(influence > 0, expected)
    assert expected[in_a].any() and not expected[np.ix_(in_a, ~in_a)].any()


@pytest.mark.parametrize("name", STYLES)
def test_packed_examples_do_not_see_each_other(name):
    definition, params, logits_of = glm_case.case(name)
    packed = jax.jit(logits_of)(params)[1]
    examples = glm_case.examples()[1:]  # the longer one comes first in their row
    rows = stack_examples(examples, glm_case.L)
    inputs = {key: rows[key] for key in ("positions", "segment_ids")}
    alone = jax.jit(definition.apply)(params, rows["tokens"], **inputs)
    sizes = [len(example["tokens"]) for example in examples]
    apart = np.concatenate([row[:size] for row, size in zip(alone, sizes, strict=True)])
    np.testing.assert_allclose(packed, apart, rtol=0, atol=2e-5)


def test_only_differences_of_rotary_positions_count():
    """Shifting either position of queries and keys alike changes no product; shifting one of them does."""
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 5, 8)).astype(np.float32)
    places = np.random.default_rng(1).integers(0, 9, (1, 5, 2))

    def products(left, right):
        turned = [
            apply_rotary(x, *rotary_angles_2d(jnp.asarray(p), 8, 10_000.0), "quarters")
            for x, p in ((q, left), (k, right))
        ]
        return np.einsum("bhic,bhjc->ij", *turned)

    base = products(places, places)
    for shift in ([7, 0], [0, 7]):
        np.testing.assert_allclose(products(places + shift, places + shift), base, rtol=0, atol=1e-5)
        assert np.abs(products(places + shift, places) - base).max() > 0.1
    # The half that turns by the first position is a head of half the size.
    one = apply_rotary(q[..., :4], *rotary_angles(jnp.asarray(places[..., 0]), 4, 10_000.0), "half")
    both = apply_rotary(q, *rotary_angles_2d(jnp.asarray(places), 8, 10_000.0), "quarters")
    np.testing.assert_allclose(both[..., :4], one, rtol=1e-6)


def test_deep_norm_scales_the_stream_up_and_the_first_weights_down():
    """alpha = (2 N)^(1/2); Xavier with gain (2 N)^(-1/2) for values, outputs and feed-forward maps."""
    config = glm130b(**glm_case.TINY | {"width": 64, "layers": 8, "heads": 4}, mlp_width=128)
    definition = ModelDefinition(GLM, config)
    blocks = jax.jit(definition.initialise)(jax.random.key(0))["blocks"]
    assert config.residual_scale == 4.0 and config.deep_gain == 0.25
    # The smallest of these has 32,768 draws: the sample's deviation errs by 0.4 %.
    square, up = (2 / 128) ** 0.5, (2 / 192) ** 0.5
    for kernel, std in (
        (blocks["attention"]["query"]["kernel"], square),
        (blocks["attention"]["key"]["kernel"], square),
        (blocks["attention"]["value"]["kernel"], square / 4),
        (blocks["attention"]["output"]["kernel"], square / 4),
        *((blocks["mlp"][name]["kernel"], up / 4) for name in ("up", "gate", "down")),
    ):
        np.testing.assert_allclose(np.std(kernel), std, rtol=0.02)


def test_pre_norm_starts_as_gpt2_does():
    config = glm("110M", **glm_case.TINY | {"width": 64, "layers": 8, "heads": 4})
    blocks = jax.jit(ModelDefinition(GLM, config).initialise)(jax.random.key(0))["blocks"]
    np.testing.assert_allclose(np.std(blocks["attention"]["value"]["kernel"]), 0.02, rtol=0.02)
    np.testing.assert_allclose(np.std(blocks["mlp"]["down"]["kernel"]), 0.02 / 4, rtol=0.02)


def test_the_shrunk_gradient_is_that_of_the_lookup_alone():
    """The value stays; of the tied matrix's gradient the lookup's part shrinks, the output's does not."""
    x = jnp.array([1.0, -2.0])
    np.testing.assert_allclose(shrink_gradient(x, 0.1), x, rtol=1e-6)
    np.testing.assert_allclose(
        jax.grad(lambda x: (shrink_gradient(x, 0.1) ** 2).sum())(x), 0.2 * x, rtol=1e-6
    )

    def gradients(factor):
        config = glm_case.CONFIGS["glm130b"]
        config = from_json(to_json(config) | {"embedding_gradient": factor, "layers": 1})
        _, params, logits_of = glm_case.case("glm130b", config)
        scalar = lineage.scalar_of(logits_of)
        return jax.jit(jax.value_and_grad(scalar, has_aux=True))(params)

    (whole_value, _), whole = gradients(1.0)
    (tenth_value, _), tenth = gradients(0.1)
    np.testing.assert_allclose(tenth_value, whole_value, rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), whole["blocks"], tenth["blocks"])
    looked_up = np.abs(whole["embedding"] - tenth["embedding"]).max(-1) > 1e-6
    np.testing.assert_array_equal(np.flatnonzero(looked_up), np.unique(glm_case.real_tokens()))
    assert (np.abs(tenth["embedding"]).max(-1) > 1e-6).all()  # the output's part is that of every token


@pytest.mark.parametrize("name", STYLES)
def test_blanks_written_with_a_cache_are_those_of_teacher_forcing(name):
    """Greedy answers to rows of different lengths and blanks are the likeliest tokens of one pass."""
    definition, params, _ = glm_case.case(name)
    ids, rng = glm_case.IDS, np.random.default_rng(7)
    text = rng.integers(5, glm_case.TEXT_IDS, 6).tolist()
    parts = [[ids.cls, text[0], ids.token, text[1], ids.token, text[2]], [*text[3:], ids.document]]
    places, counts = np.array([[4, 2], [3, 0]]), np.array([2, 1])
    tokens, mask = left_pad(parts, 0, 7)
    # The likeliest token of random weights is never the end token: take one that comes early in its place.
    settings = {"sampling": SamplingConfig(temperature=0.0, max_new_tokens=9), "start_id": ids.start}

    @jax.jit
    def write(params, end):
        drawn = request_keys([0, 1])
        return write_blanks(definition, params, tokens, mask, places, counts, drawn, **settings, end_id=end)

    end = int(write(params, ids.end)[0, 1])
    written = np.asarray(write(params, end))
    answers = [split_answers(row, count, end) for row, count in zip(written, counts, strict=True)]
    assert len(answers[0]) == 2 and len(answers[0][0]) <= 1 and len(answers[1]) == 1
    forced, apply = np.zeros((2, 18), int), jax.jit(definition.apply)
    at = np.ones((2, 18, 2), int)  # Part B is causal: what follows changes nothing
    for row, (part, marks, said) in enumerate(zip(parts, places, answers, strict=True)):
        entering, positions = list(part), [(i, 0) for i in range(len(part))]
        for mark, answer in zip(marks, said, strict=False):
            entering += [ids.start, *answer]
            positions += [(int(mark), 1 + i) for i in range(len(answer) + 1)]
        forced[row, : len(entering)], at[row, : len(entering)] = entering, positions
    likeliest = np.argmax(apply(params, forced, positions=at), -1)
    for row, (part, said) in enumerate(zip(parts, answers, strict=True)):
        count = min(9, sum(len(answer) + 1 for answer in said))
        np.testing.assert_array_equal(likeliest[row, len(part) : len(part) + count], written[row, :count])


def test_configurations_survive_json_and_impossible_ones_are_refused():
    for config in (glm("10B"), glm130b(), chatglm()):
        assert from_json(json.loads(json.dumps(to_json(config)))) == config
    with pytest.raises(ValueError, match="positions = 'rotary_2d' need a head size that is a multiple of 4"):
        chatglm(**glm_case.TINY | {"heads": 8})
    with pytest.raises(ValueError, match="heads = 3 does not divide width = 16"):
        glm("110M", **glm_case.TINY | {"heads": 3})
    with pytest.raises(ConfigError, match="GLM was not published in size '2B': use one of 110M, 335M, 10B"):
        glm("2B")
    with pytest.raises(ValueError, match="25 tokens exceed the context length of 24"):
        definition = ModelDefinition(GLM, glm_case.CONFIGS["glm"])
        definition.apply(definition.abstract, np.zeros((1, 25), int), positions=np.zeros((1, 25, 2), int))


def test_flops_count_the_tied_matrix_once():
    config = GLMConfig(vocab_size=50, context_length=10, width=8, layers=3, heads=2)
    definition = ModelDefinition(GLM, config)
    expected = 6 * (definition.parameter_count - 2 * 10 * 8) + 12 * 3 * 6 * 8
    assert matmul_flops_per_token(definition, 6) == expected
