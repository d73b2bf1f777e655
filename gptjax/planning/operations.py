"""Floating-point operations of a program, counted in what JAX traced: matrix products, through every loop."""

import math
from dataclasses import astuple, dataclass, replace

import jax
from jax.interpreters.partial_eval import dce_jaxpr

from gptjax.planning.programs import Program, ambient


@dataclass(frozen=True)
class Operations:
    """Operations of all devices together, two for a multiplication and its addition.

    Attributes:
        maps: of products with weights, which have no batch axes.
        attention: of products within a row: queries with keys, weights with values, and their gradients.
        optimiser: of its update, as Muon has them.
    """

    maps: float = 0.0
    attention: float = 0.0
    optimiser: float = 0.0

    @property
    def model(self) -> float:
        """Without the optimiser's."""
        return self.maps + self.attention

    @property
    def total(self) -> float:
        """All."""
        return self.model + self.optimiser

    def __add__(self, other: "Operations") -> "Operations":
        return Operations(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def times(self, factor: float) -> "Operations":
        """The same several times."""
        return Operations(*(factor * one for one in astuple(self)))


def operations(program: Program, mesh) -> Operations:
    """The operations of one call; a loop that ends when all replies have is taken to its end."""
    training = program.training
    with ambient(mesh):
        found = count(trace(program.function, program.arguments), program.trips)
        if training is None:
            return found

        def gradient(params, batch, key, *extra):
            return jax.grad(training.loss, has_aux=True)(params, batch, training.count(batch), key, *extra)

        state, batch, key, *extra = program.arguments
        of_model = count(trace(gradient, (state.params, batch, key, *extra)))
    return replace(of_model, optimiser=max(0.0, found.total - of_model.total))


def trace(function, arguments: tuple):
    """The jaxpr of a function, without what its results do not need, such as gradients of frozen weights."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def count(jaxpr, trips: int = 1) -> Operations:
    """The operations of a jaxpr.

    Args:
        jaxpr: from `trace`.
        trips: turns of every `while` loop, whose number the program does not say.
    """
    found = Operations()
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            found += _product(equation)
        elif name == "scan":
            found += count(params["jaxpr"].jaxpr, trips).times(params["length"])
        elif name == "while":
            found += count(params["body_jaxpr"].jaxpr, trips).times(trips)
        elif name == "cond":
            branches = [count(branch.jaxpr, trips) for branch in params["branches"]]
            found += max(branches, key=lambda branch: branch.total)
        else:
            copies = _copies(params) if name == "shard_map" else 1
            found += sum((count(inner, trips) for inner in _inner(params)), Operations()).times(copies)
    return found


def _product(equation) -> Operations:
    (contracted, _), (batched, _) = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    made = 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    return Operations(attention=made) if batched else Operations(maps=made)


def _copies(params: dict) -> int:
    """How many devices run the body of a `shard_map`, each on its own part."""
    # JAX has renamed them.
    axes = params["newly_manual_axes" if "newly_manual_axes" in params else "manual_axes"]
    return math.prod(params["mesh"].shape[axis] for axis in axes)


def _inner(params: dict) -> list:
    """The jaxprs among an equation's parameters."""
    values = [
        v for value in params.values() for v in (value if isinstance(value, tuple | list) else (value,))
    ]
    inner = [getattr(value, "jaxpr", value) for value in values]
    return [value for value in inner if hasattr(value, "eqns")]
