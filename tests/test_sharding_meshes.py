"""One training step of a decoder that is the same on every mesh."""

from dataclasses import replace
from functools import cache
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.models.families import gpt2, llama
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.planning.collectives import read_collectives
from gptjax.sharding.mesh import MESH_AXES, MeshConfig, make_mesh, place, replicated
from gptjax.stages.language_loss import count_tokens, make_language_loss
from gptjax.stages.sharded import compile_step, create_state, order_microbatches
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import accumulated_gradient, apply_update

B, L, D, N, V = 16, 8, 16, 8, 40
SIZES = {"vocab_size": V, "context_length": L, "width": D, "layers": N, "heads": 8, "mlp_width": 32}
STYLES = {
    "llama": llama("7B", **SIZES, kv_heads=4),
    # Layer norms, biases, learned positions, a tied embedding; every second layer banded, as GPT-3's.
    "gpt2": gpt2("124M", **SIZES, attention_band=3),
}
# Each axis alone on two, four and eight devices, each pair on four, each triple on eight.
ALONE = [MeshConfig(**{axis: size}) for axis in MESH_AXES for size in (2, 4, 8)]
PAIRS, TRIPLES = (
    [MeshConfig(**dict.fromkeys(axes, 2)) for axes in combinations(MESH_AXES, count)] for count in (2, 3)
)
QUICK = [
    ("llama", mesh)
    for mesh in (MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(stage=2, fsdp=2, sequence=2))
]
SLOW = [("llama", mesh) for mesh in ALONE + PAIRS] + [("gpt2", mesh) for mesh in TRIPLES]


@cache
def problem(style):
    """A model, its parameters, and a batch of packed rows with a ragged loss mask."""
    definition, rng = ModelDefinition(LanguageModel, STYLES[style]), np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), definition.abstract)
    batch = {name: rng.integers(0, V, (B, L)).astype(np.int32) for name in ("tokens", "targets")}
    batch["loss_mask"] = (rng.random((B, L)) < 0.6).astype(np.float32)
    starts = np.sort(rng.integers(0, L, (B, 2)), axis=1)
    batch["segment_ids"] = 1 + (np.arange(L) >= starts[:, :, None]).sum(1).astype(np.int32)
    batch["positions"] = np.broadcast_to(np.arange(L, dtype=np.int32), (B, L))
    return definition, params, batch


def optimizer_of(definition):
    """AdamW with a large epsilon: the gradient of a key's bias is zero, and its rounding would be a step."""
    return make_optimizer(OptimizerConfig(learning_rate=1e-3, epsilon=1e-3), 100, definition.axes)


def start(style, mesh):
    """The state before the first step."""
    definition, params, _ = problem(style)
    given = jax.tree.map(jnp.asarray, params)
    return create_state(definition, optimizer_of(definition), mesh, params=given)


@cache
def one_step(style, mesh_config):
    """(state after one step with two micro-batches, (loss, metrics, gradient)) on a mesh, on the host."""
    definition, _, batch = problem(style)
    in_turn, flowing = order_microbatches(mesh_config, accumulate=2)
    mesh, loss_fn = make_mesh(mesh_config), make_language_loss(definition, chunk=16, microbatches=flowing)

    def step(state, batch, key):
        loss, metrics, gradient = accumulated_gradient(
            loss_fn, state.params, batch, count_tokens(batch), key, accumulate=in_turn
        )
        return apply_update(state, gradient, loss, optimizer_of(definition))[0], (loss, metrics, gradient)

    return jax.device_get(compile_step(step, mesh)(start(style, mesh), place(batch, mesh), jax.random.key(0)))


@pytest.mark.parametrize(
    ("style", "mesh"), QUICK + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW], ids=str
)
def test_one_device_equals_several(style, mesh):
    state, results = one_step(style, mesh)
    expected_state, expected = one_step(style, MeshConfig())
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)  # noqa: E731
    jax.tree.map(close, results, expected)
    jax.tree.map(close, state.params, expected_state.params)
    before = problem(style)[1]["decoder"]["embedding"]
    moved = np.abs(state.params["decoder"]["embedding"] - before).max()
    assert moved > 5e-4, "the step must have moved the parameters"


def test_parameters_and_moments_lie_in_shards():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    state = start("llama", mesh)
    kernels = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if jax.tree_util.keystr(path).endswith("['up']['kernel']")
    ]
    assert len(kernels) == 3  # the parameter and Adam's two moments
    for kernel in kernels:
        assert kernel.shape == (N, D, 32)
        assert kernel.addressable_shards[0].data.shape == (N, D // 2, 16)
    assert state.step.sharding == replicated(mesh)


def test_each_stage_holds_its_layers():
    state = start("llama", make_mesh(MeshConfig(stage=4, tensor=2)))
    kernel = state.params["decoder"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (N // 4, D, 16)


def compiled_text(mesh_config, length):
    """(the optimised program of the loss of rows of so many tokens and its gradient, its mesh)."""
    definition, _, batch = problem("llama")
    mesh, loss_fn = make_mesh(mesh_config), make_language_loss(definition)
    batch = {name: rows[:, :length] for name, rows in batch.items()}
    with jax.set_mesh(mesh):
        given = start("llama", mesh).params, place(batch, mesh), 1.0, None
        return jax.jit(jax.value_and_grad(loss_fn, has_aux=True)).lower(*given).compile().as_text(), mesh


@pytest.mark.slow
def test_dropout_in_a_pipeline_follows_its_key():
    definition, params, batch = problem("llama")
    definition = ModelDefinition(LanguageModel, replace(definition.config, dropout=0.5))
    loss_fn = jax.jit(make_language_loss(definition, microbatches=2))
    mesh = make_mesh(MeshConfig(stage=2, data=2))
    with jax.set_mesh(mesh):
        placed = place(batch, mesh)
        losses = [float(loss_fn(params, placed, 1.0, jax.random.key(seed))[0]) for seed in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert losses[2] != losses[0]


def test_between_sublayers_the_positions_are_split_over_tensor():
    """Two gathers of a block forward and two backward; its sums are cut at once, or stay whole where 7 / 4.

    Accelerators make one reduce-scatter of such a sum and cut; a CPU's program keeps both.
    """
    texts = {}
    for length in (L, L - 1):
        texts[length], mesh = compiled_text(MeshConfig(tensor=4), length)
        found, _ = read_collectives(texts[length], dict(mesh.shape))
        gathers = sum(c.calls for c in found if c.kind == "all-gather")
        # Beside them the last hidden states, their gradient, and that of the embedded tokens.
        assert gathers == (4 * N + 3 if length == L else 0)
        assert {c.kind for c in found} == {"all-reduce"} | ({"all-gather"} if gathers else set())
    assert f"f32[{N},{B},{L // 4},{D}]" in texts[L] and f"f32[{N},{B},{L - 1},{D}]" in texts[L - 1]
