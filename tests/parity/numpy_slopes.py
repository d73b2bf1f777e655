"""Gradients of models in plain numpy, by central differences."""

import jax
import lineage
import numpy as np

STEP = 1e-5


def central_slopes(scalar, params) -> dict[str, float]:
    """`lineage.slopes` of a function without a gradient: `(f(x + h way) - f(x - h way)) / 2 h` of each leaf.

    Args:
        scalar: params -> a number, in float64.
        params: float64.
    """
    leaves, tree = jax.tree.flatten(params)
    slopes = {}
    for place, (leaf, way) in enumerate(lineage.ways(params).items()):

        def moved(by, place=place, way=way):
            return scalar(tree.unflatten([x + by * way if i == place else x for i, x in enumerate(leaves)]))

        slopes[leaf] = float(moved(STEP) - moved(-STEP)) / (2 * STEP)
    return slopes


def check_numpy(name, case, numpy_forward):
    """Logits within 1e-4, slopes within 1e-3 of the gradient's size; and numpy's against the stored numbers.

    Args:
        name: of the stored numbers.
        case: (definition, params, `params -> logits`).
        numpy_forward: params in float64 -> (scalar as `lineage.scalar_of`, logits).
    """
    _, params, logits_of = case
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    scalar, expected = numpy_forward(exact)
    slopes = central_slopes(lambda p: numpy_forward(p)[0], exact)
    lineage.check_figures(name, expected, scalar, slopes)
    (ours, logits), gradient = jax.jit(jax.value_and_grad(lineage.scalar_of(logits_of), has_aux=True))(params)
    np.testing.assert_allclose(ours, scalar, rtol=1e-4)
    for mine, theirs in zip(jax.tree.leaves(logits), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4)
    found = zip(lineage.slopes(gradient).items(), jax.tree.leaves(gradient), strict=True)
    for (leaf, slope), array in found:
        # A random direction's share of the gradient is about the gradient's norm. Key biases shift all scores
        # of a query alike without rotary positions: their gradient is 0.
        size = np.linalg.norm(array)
        np.testing.assert_allclose(slope, slopes[leaf], rtol=0, atol=1e-3 * size + 1e-7, err_msg=leaf)


def numpy_scalar(logits):
    """The scalar of `lineage.scalar_of` from logits in float64."""
    parts = [
        ((x - np.log(np.exp(x).sum(-1, keepdims=True))) * lineage.direction(x.shape)).mean() for x in logits
    ]
    return sum(parts)
