"""Rows of several sources, mixed by weight, in an order that is a function of the step."""

import numpy as np

from gptjax.data.quality import DataError

Rows = np.ndarray | dict[str, np.ndarray]


class Mixture:
    """Draws batches from `sources` in the shares of `weights` (Brown et al. 2020, section 2.2).

    Each source is shuffled, and shuffled anew when it has been used up. Batch `step` depends on the
    constructor's arguments and on `step` alone, so a run resumes with nothing saved but its step.
    """

    def __init__(self, sources: dict[str, Rows], weights: dict[str, float], batch_size: int, seed: int):
        """Mixes sources of rows [N, ...], or of dicts of such arrays with the same keys.

        Raises DataError when sources and weights name different things, a weight is not a positive number,
        a source has no row, or the sources' arrays differ in names, row shapes or dtypes.
        """
        check(sources, weights)
        import grain

        self.batch_size = batch_size
        self._sources = [sources[name] for name in weights]
        orders = [
            grain.MapDataset.source(range(count_rows(source))).seed(seed + index).shuffle().repeat()
            for index, source in enumerate(self._sources)
        ]
        tagged = [order.map(lambda row, index=index: (index, row)) for index, order in enumerate(orders)]
        total = sum(weights.values())
        self._order = grain.MapDataset.mix(tagged, weights=[weight / total for weight in weights.values()])

    def batch_at(self, step: int) -> Rows:
        """The rows of batch `step`, the same in every process; `sharding.mesh.place` hands each its own."""
        return self.rows(step * self.batch_size, self.batch_size)

    def rows(self, first: int, count: int) -> Rows:
        """Rows `first` to `first + count` of the whole order."""
        places = [self._order[i] for i in range(first, first + count)]
        if isinstance(self._sources[0], dict):
            return {
                name: np.stack([self._sources[index][name][row] for index, row in places])
                for name in self._sources[0]
            }
        return np.stack([self._sources[index][row] for index, row in places])


def count_rows(source: Rows) -> int:
    """Number of rows of a source."""
    return len(next(iter(source.values()))) if isinstance(source, dict) else len(source)


def check(sources: dict[str, Rows], weights: dict[str, float]) -> None:
    """Raises DataError, naming the source, when `sources` and `weights` can't be mixed."""
    if set(sources) != set(weights):
        odd = ", ".join(sorted(set(sources) ^ set(weights)))
        raise DataError(f"sources and weights must have the same names, but only one of them has: {odd}")
    if not sources:
        raise DataError("a mixture needs at least one source")
    layouts = {}
    for name, source in sources.items():
        if not (np.isfinite(weights[name]) and weights[name] > 0):
            raise DataError(f"the weight of '{name}' is {weights[name]}: it must be a positive number")
        if count_rows(source) == 0:
            raise DataError(f"source '{name}' has no row: give it more text or shorter rows")
        arrays = source if isinstance(source, dict) else {"rows": source}
        if len({len(array) for array in arrays.values()}) != 1:
            raise DataError(f"the arrays of source '{name}' have different numbers of rows")
        layouts[name] = {key: (array.shape[1:], array.dtype) for key, array in arrays.items()}
    first = next(iter(layouts))
    for name, layout in layouts.items():
        if layout != layouts[first]:
            raise DataError(f"the rows of '{name}' are {layout}, those of '{first}' {layouts[first]}")
