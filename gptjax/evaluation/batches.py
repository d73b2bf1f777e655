"""All rows of some data in batches of one size."""

from collections.abc import Iterator

import numpy as np


def whole_batches(rows: dict[str, np.ndarray], batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Every row once; the last batch is filled with copies of the last row, whose weights are 0.

    Args:
        rows: arrays `[N, ...]`; those of floats are weights.
        batch_size: B.
    """
    count = len(next(iter(rows.values())))
    for start in range(0, count, batch_size):
        index = np.arange(start, start + batch_size)
        batch = {name: array[np.minimum(index, count - 1)] for name, array in rows.items()}
        for name, array in batch.items():
            if np.issubdtype(array.dtype, np.floating):
                batch[name] = array * (index < count).astype(array.dtype).reshape(-1, *[1] * (array.ndim - 1))
        yield batch


def summed(program, params, rows: dict[str, np.ndarray], batch_size: int) -> dict[str, float]:
    """The sums over all rows of what a jitted `(params, batch) -> dict of scalars` gives for each batch."""
    totals: dict[str, float] = {}
    for batch in whole_batches(rows, batch_size):
        for name, value in program(params, batch).items():
            totals[name] = totals.get(name, 0.0) + float(value)
    return totals
