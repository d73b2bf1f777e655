"""Averages of parameters: the mean of a run's last checkpoints (Vaswani et al. 2017, section 6.1)."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from gptjax.training.checkpoint import Checkpoints


def average_trees(trees: Iterable):
    """The mean of trees of arrays, `mean_n = mean_(n - 1) + (tree_n - mean_(n - 1)) / n`.

    One tree is held beside the mean; the mean is float32 and has the first tree's dtypes in the end.

    Raises:
        ValueError: there is no tree.
    """
    mean, dtypes = None, None
    for count, tree in enumerate(trees, 1):
        if mean is None:
            mean, dtypes = jax.tree.map(jnp.float32, tree), jax.tree.map(lambda x: x.dtype, tree)
        else:
            mean = jax.tree.map(lambda m, x, n=count: m + (jnp.float32(x) - m) / n, mean, tree)
    if mean is None:
        raise ValueError("there is no tree to average")
    return jax.tree.map(lambda m, dtype: m.astype(dtype), mean, dtypes)


def average_checkpoints(checkpoints: Checkpoints, like, last: int):
    """(mean parameters of the `last` newest checkpoints, their steps); 5 in the base model, 20 in the big.

    Args:
        checkpoints: of one run; `keep` at least `last`.
        like: a train state of the same shapes, laid out as the parameters shall be.
        last: how many; a run that has saved fewer gives all it has.

    Raises:
        ValueError: there is no checkpoint.
    """
    steps = checkpoints.steps()[-last:]
    return average_trees(checkpoints.restore(step, like).params for step in steps), steps
