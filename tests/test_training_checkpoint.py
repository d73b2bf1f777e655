"""Checkpoints: every bit comes back, on any mesh, and only for the run that wrote them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.config import ConfigError
from gptjax.sharding.mesh import MeshConfig, make_mesh, replicated
from gptjax.training.checkpoint import Checkpoints, load_tree, save_tree
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import TrainState

IDENTITY = {"tokenizer": "0123456789abcdef0123"}


def train_state(mesh, seed=0):
    """Parameters split over `fsdp` and moments that are not zero."""
    optimizer = make_optimizer(OptimizerConfig(), 10, {"w": ("embed", "mlp")})
    params = {"w": np.random.default_rng(seed).normal(size=(8, 4)).astype(np.float32)}
    state = TrainState.create(params, optimizer)
    updates, moments = optimizer.update(params, state.opt_state, params)
    state = TrainState(jnp.int32(7), params, moments, jnp.int32(2))
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    return jax.tree.map(lambda x: jax.device_put(x, split if x.shape else replicated(mesh)), state)


def assert_same_bits(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def write(folder, state):
    writer = Checkpoints(folder, IDENTITY)
    assert writer.restore_latest(state) is None
    writer.save(7, state)
    writer.close()


@pytest.fixture
def mesh():
    return make_mesh(MeshConfig())


def test_a_state_comes_back_bit_for_bit(tmp_path, mesh):
    state = train_state(mesh)
    write(tmp_path, state)
    reader = Checkpoints(tmp_path, IDENTITY)
    assert_same_bits(reader.restore_latest(train_state(mesh, seed=1)), state)
    reader.close()


def test_a_state_comes_back_on_another_mesh(tmp_path, mesh):
    state = train_state(mesh)
    write(tmp_path, state)
    wide = train_state(make_mesh(MeshConfig(fsdp=8)), seed=1)
    reader = Checkpoints(tmp_path, IDENTITY)
    restored = reader.restore_latest(wide)
    reader.close()
    assert_same_bits(restored, state)
    assert restored.params["w"].sharding == wide.params["w"].sharding
    assert restored.params["w"].addressable_shards[0].data.shape == (1, 4)


def test_another_tokenizer_is_refused(tmp_path, mesh):
    state = train_state(mesh)
    write(tmp_path, state)
    for other in ({"tokenizer": "f" * 20}, IDENTITY | {"base": "abc"}):
        reader = Checkpoints(tmp_path, other)
        with pytest.raises(ConfigError, match=r"7 was written with (tokenizer 0123456789abcdef|base None)"):
            reader.restore_latest(state)
        reader.close()


def test_the_newest_are_kept(tmp_path, mesh):
    writer = Checkpoints(tmp_path, IDENTITY, keep=2)
    for step in (1, 2, 3):
        writer.save(step, train_state(mesh, seed=step))
    writer.close()
    assert sorted(int(f.name) for f in tmp_path.iterdir() if f.name.isdigit()) == [2, 3]
    reader = Checkpoints(tmp_path, IDENTITY)
    assert_same_bits(reader.restore_latest(train_state(mesh)), train_state(mesh, seed=3))
    reader.close()


def test_a_saved_state_may_be_given_away_at_once(tmp_path, mesh):
    """The step donates its input, so a save under way must not read the arrays any more."""
    state, expected = train_state(mesh), jax.device_get(train_state(mesh))
    writer = Checkpoints(tmp_path, IDENTITY)
    writer.save(1, state)
    jax.block_until_ready(jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(state))
    writer.close()
    reader = Checkpoints(tmp_path, IDENTITY)
    assert_same_bits(jax.device_get(reader.restore_latest(train_state(mesh))), expected)
    reader.close()


def test_a_tree_comes_back(tmp_path, mesh):
    params = train_state(mesh).params
    save_tree(tmp_path / "params", params)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
    assert_same_bits(load_tree(tmp_path / "params", abstract), params)
