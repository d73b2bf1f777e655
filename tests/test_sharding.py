"""The mesh and its rules, and one training step that is the same on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gptjax.config import ConfigError
from gptjax.models.families import llama
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.sharding.mesh import MeshConfig, check_batch, make_mesh, place, replicated
from gptjax.sharding.rules import constrain, parameter_shardings, partition_spec
from gptjax.stages.language_loss import count_tokens, make_language_loss
from gptjax.stages.sharded import compile_step, create_state
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import accumulated_gradient, apply_update

MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(fsdp=8),
    "all": MeshConfig(data=2, fsdp=2, tensor=2),
}


def test_too_few_devices_are_named():
    with pytest.raises(
        ConfigError, match=r"data=4 x fsdp=4 x tensor=1 needs 16 devices, but JAX sees 8 \(cpu\)"
    ):
        make_mesh(MeshConfig(data=4, fsdp=4))


def test_mesh_has_its_axes_and_devices():
    mesh = make_mesh(MeshConfig(data=2, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 2}
    assert mesh.devices.size == 4
    with pytest.raises(ValueError, match="fsdp\n.*greater than or equal to 1"):
        MeshConfig(fsdp=0)


def test_a_batch_that_does_not_divide_is_refused():
    check_batch(24, MeshConfig(data=2, fsdp=2, tensor=2), accumulate=3)
    with pytest.raises(
        ValueError, match="batch_size = 20 does not divide into 4 mesh parts .* a multiple of 12"
    ):
        check_batch(20, MeshConfig(data=2, fsdp=2), accumulate=3)


def test_rules_by_hand():
    assert partition_spec(("layers", "embed", "heads")) == PartitionSpec(None, "fsdp", "tensor")
    assert partition_spec(("batch", "length", None)) == PartitionSpec(("data", "fsdp"), None, None)


def test_a_logical_axis_without_a_rule_is_an_error():
    with pytest.raises(KeyError, match="'experts' has no rule"):
        partition_spec(("layers", "experts"))
    with jax.set_mesh(make_mesh(MeshConfig(data=8))), pytest.raises(KeyError, match="'experts' has no rule"):
        constrain(jnp.ones((8, 2)), ("batch", "experts"))


def test_a_parameter_that_does_not_divide_is_named():
    abstract = {"mlp": {"up": jax.ShapeDtypeStruct((16, 30), jnp.float32)}}
    axes = {"mlp": {"up": ("embed", "mlp")}}
    with pytest.raises(
        ConfigError, match=r"mlp\.up: its axis 'mlp' of size 30 does not divide over mesh\.tensor = 4"
    ):
        parameter_shardings(make_mesh(MeshConfig(tensor=4)), abstract, axes)


def test_place_splits_rows_and_keeps_values():
    rows = np.arange(32).reshape(16, 2)
    placed = place({"tokens": rows}, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))["tokens"]
    np.testing.assert_array_equal(placed, rows)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(4, 2)}


def test_constrain_without_a_mesh_changes_nothing():
    x = jnp.ones((3, 2))
    assert constrain(x, ("batch", None)) is x


@pytest.fixture(scope="module")
def problem():
    """A LLaMA-style model, its parameters, a batch with a ragged loss mask, and AdamW.

    No biases: the gradient of a key bias is zero, and Adam would blow its rounding up to a whole step.
    """
    config = llama(
        "7B", vocab_size=40, context_length=8, width=16, layers=2, heads=4, kv_heads=2, mlp_width=32
    )
    definition, rng = ModelDefinition(LanguageModel, config), np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), definition.abstract)
    batch = {name: rng.integers(0, 40, (16, 8)).astype(np.int32) for name in ("tokens", "targets")}
    batch["loss_mask"] = (rng.random((16, 8)) < 0.6).astype(np.float32)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), 100, definition.axes)
    return definition, params, batch, optimizer


def one_step(problem, mesh_config):
    """State after one step with two micro-batches, and (loss, metrics, gradient), on a mesh."""
    definition, params, batch, optimizer = problem
    mesh, loss_fn = make_mesh(mesh_config), make_language_loss(definition, chunk=16)

    def step(state, batch, key):
        loss, metrics, gradient = accumulated_gradient(
            loss_fn, state.params, batch, count_tokens(batch), key, accumulate=2
        )
        return apply_update(state, gradient, loss, optimizer)[0], (loss, metrics, gradient)

    state = create_state(definition, optimizer, mesh, params=jax.tree.map(jnp.asarray, params))
    return compile_step(step, mesh)(state, place(batch, mesh), jax.random.key(0))


@pytest.fixture(scope="module")
def on_one_device(problem):
    return jax.device_get(one_step(problem, MeshConfig()))


@pytest.mark.parametrize(
    "name", [name if name == "all" else pytest.param(name, marks=pytest.mark.slow) for name in MESHES]
)
def test_one_device_equals_eight(problem, on_one_device, name):
    state, results = one_step(problem, MESHES[name])
    expected_state, expected = on_one_device
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)  # noqa: E731
    jax.tree.map(close, results, expected)
    jax.tree.map(close, state.params, expected_state.params)
    moved = np.abs(np.asarray(state.params["unembedding"]) - problem[1]["unembedding"]).max()
    assert moved > 5e-4, "the step must have moved the parameters"


def test_parameters_and_moments_lie_in_shards(problem):
    definition, params, _, optimizer = problem
    mesh = make_mesh(MESHES["all"])
    state = create_state(definition, optimizer, mesh, params=jax.tree.map(jnp.asarray, params))
    kernels = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if jax.tree_util.keystr(path).endswith("['up']['kernel']")
    ]
    assert len(kernels) == 3  # the parameter and Adam's two moments
    for kernel in kernels:
        assert kernel.shape == (2, 16, 32)
        assert kernel.addressable_shards[0].data.shape == (2, 8, 16)
    assert state.step.sharding == replicated(mesh)
