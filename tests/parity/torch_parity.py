"""Logits and gradients of our models against those of torch modules with the same parameters."""

import jax
import lineage
import numpy as np


def check_parity(name, case, theirs, names, expected):
    """Logits within 1e-4, gradients as `check_gradients`; and torch's numbers against the stored ones.

    Args:
        name: of the stored numbers.
        case: (definition, params, `params -> logits`).
        theirs: the torch module.
        names: our tree -> its tensors by torch's names.
        expected: its logits, one tensor or a list.
    """
    import torch

    _, params, logits_of = case
    expected = expected if isinstance(expected, list) else [expected]
    parts = [
        (torch.log_softmax(x, -1) * torch.tensor(lineage.direction(tuple(x.shape)))).mean() for x in expected
    ]
    scalar = sum(parts)
    scalar.backward()
    (_, logits), gradient = jax.jit(jax.value_and_grad(lineage.scalar_of(logits_of), has_aux=True))(params)
    for ours, true in zip(jax.tree.leaves(logits), expected, strict=True):
        np.testing.assert_allclose(ours, true.detach().numpy(), rtol=0, atol=1e-4)
    slopes = check_gradients(gradient, names, theirs)
    lineage.check_figures(name, [x.detach().numpy() for x in expected], float(scalar.detach()), slopes)


def check_gradients(gradient, names, theirs) -> dict[str, float]:
    """Gradients within 1e-3 of the largest entry of their tensor; returns torch's as `lineage.slopes`."""
    tensors = {name: x.grad.numpy() for name, x in theirs.named_parameters() if x.grad is not None}
    # A key bias moves no softmax: its gradient is zero but for the rounding of terms as large as the others.
    rounding = 1e-3 * max(np.abs(x).max() for x in tensors.values())
    for name, ours in names(gradient).items():
        scale = max(np.abs(tensors[name]).max(), rounding)
        np.testing.assert_allclose(ours, tensors[name], rtol=0, atol=1e-3 * scale, err_msg=name)
    return slopes_of(tensors, names, gradient)


def slopes_of(tensors, names, gradient) -> dict[str, float]:
    """`lineage.slopes` of torch's gradients: each direction in turn goes by torch's names, alone."""
    leaves, tree = jax.tree.flatten(gradient)
    slopes = {}
    for place, (leaf, way) in enumerate(lineage.ways(gradient).items()):
        alone = [way if i == place else np.zeros(x.shape) for i, x in enumerate(leaves)]
        moved = names(tree.unflatten(alone))
        slopes[leaf] = float(sum((tensors[name].astype(float) * x).sum() for name, x in moved.items()))
    return slopes
