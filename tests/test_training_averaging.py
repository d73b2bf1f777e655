"""Averages of parameters: the mean, one tree at a time, over what a run has saved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.training.averaging import average_checkpoints, average_trees
from gptjax.training.checkpoint import Checkpoints
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import TrainState


def tree(seed):
    rng = np.random.default_rng(seed)
    return {
        "w": rng.normal(size=(3, 2)).astype(np.float32),
        "deep": {"b": rng.normal(size=2).astype(np.float32)},
    }


def test_the_mean_of_many_trees():
    trees = [tree(seed) for seed in range(20)]
    mean = average_trees(iter(trees))
    np.testing.assert_allclose(mean["w"], np.mean([t["w"] for t in trees], 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean["deep"]["b"], np.mean([t["deep"]["b"] for t in trees], 0), atol=1e-6)


def test_equal_trees_stay_themselves_and_bfloat16_is_averaged_in_float32():
    mean = average_trees([tree(0)] * 7)
    np.testing.assert_array_equal(mean["w"], tree(0)["w"])
    # Added up in bfloat16, 256 and 1 would make 256.
    parts = [{"w": jnp.asarray([x], jnp.bfloat16)} for x in (256.0, 1.0, 1.0, 1.0)]
    mean = average_trees(parts)["w"]
    assert mean.dtype == jnp.bfloat16 and float(mean[0]) == float(jnp.bfloat16(259 / 4))


def test_one_tree_is_held_at_a_time():
    alive = []

    class Tracked(np.ndarray):
        def __del__(self):
            if self.base is not None:
                alive.remove(id(self.base))

    def trees():
        for seed in range(5):
            plain = tree(seed)["w"]
            alive.append(id(plain))
            assert len(alive) <= 2, "the one before is still there"
            yield {"w": plain.view(Tracked)}

    average_trees(trees())


def test_no_tree_is_refused():
    with pytest.raises(ValueError, match="there is no tree to average"):
        average_trees([])


def test_the_last_checkpoints_of_a_run(tmp_path):
    optimizer = make_optimizer(OptimizerConfig(), 10, {"w": ("embed", "mlp"), "deep": {"b": ("mlp",)}})

    def state(seed):
        return jax.tree.map(jnp.asarray, TrainState.create(tree(seed), optimizer))

    checkpoints = Checkpoints(tmp_path, {}, keep=3)
    for step in range(1, 6):
        checkpoints.save(step * 10, state(step))
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, {}, keep=3)
    assert checkpoints.steps() == [30, 40, 50]
    mean, steps = average_checkpoints(checkpoints, state(0), 2)
    assert steps == [40, 50]
    np.testing.assert_allclose(mean["w"], (tree(4)["w"] + tree(5)["w"]) / 2, rtol=1e-6)
    _, steps = average_checkpoints(checkpoints, state(0), 20)
    assert steps == [30, 40, 50], "a short run gives all it has"
    checkpoints.close()
