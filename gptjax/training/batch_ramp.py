"""A batch that grows over the first tokens, and the run counted in rows (Brown et al. 2020, appendix B).

A compiled step serves one batch size, so the line from the first size to the last is a staircase of a few.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config import configclass
from gptjax.ranges import Count


@configclass
class BatchRamp:
    """Growth of the batch from a first size to the full one.

    Attributes:
        start: rows of the first batch.
        tokens: tokens after which the batch is full (GPT-3: 4 to 12 of 300 billion).
        sizes: how many sizes there are, the first and the full one among them; each is compiled once.
    """

    start: Count
    tokens: Count
    sizes: Count = 4

    def __post_init__(self):
        if self.sizes < 2:
            raise ValueError(f"a ramp needs sizes of at least 2, but sizes = {self.sizes}")


def ramp_sizes(ramp: BatchRamp | None, batch_size: int) -> list[int]:
    """The batch sizes of a run, smallest first: evenly spaced from `ramp.start` to `batch_size`.

    Raises:
        ValueError: the first size is not below the full one, or the steps between them are not whole.
    """
    if ramp is None:
        return [batch_size]
    if ramp.start >= batch_size or (batch_size - ramp.start) % (ramp.sizes - 1):
        raise ValueError(
            f"batch_size = {batch_size} is not reached from ramp.start = {ramp.start} in {ramp.sizes - 1} "
            "equal steps: change ramp.start or ramp.sizes"
        )
    return list(range(ramp.start, batch_size + 1, (batch_size - ramp.start) // (ramp.sizes - 1)))


@dataclass(frozen=True)
class BatchPlan:
    """Which rows each step reads: a function of the configuration alone, so a run resumes by its step.

    Attributes:
        first_row: int64 `[steps + 1]`, rows read before each step; the last is the run's total.
        batch_size: rows of a full batch.
    """

    first_row: np.ndarray
    batch_size: int

    def rows(self, step: int) -> tuple[int, int]:
        """(first row, number of rows) of a step, counted from 0."""
        return int(self.first_row[step]), int(self.first_row[step + 1] - self.first_row[step])

    @property
    def total(self) -> int:
        """Rows of the whole run."""
        return int(self.first_row[-1])

    @property
    def updates(self) -> float:
        """The run's rows in full batches: the length of a schedule by tokens."""
        return self.total / self.batch_size

    def clock(self, count: jax.Array) -> jax.Array:
        """Rows read before update `count` in full batches, float32: the position of a schedule by tokens."""
        sizes = np.diff(self.first_row)
        ramp = int((sizes < self.batch_size).sum())  # sizes never fall, so these updates are the first
        if not ramp:
            return count
        before = jnp.asarray(self.first_row[: ramp + 1] / self.batch_size, jnp.float32)
        return before[jnp.minimum(count, ramp)] + jnp.maximum(count - ramp, 0)


def plan_batches(ramp: BatchRamp | None, batch_size: int, length: int, steps: int) -> BatchPlan:
    """The plan of a run of `steps` updates.

    With n tokens read and sizes b_0 < ... < b_S, the next batch is the largest size at most
    `b_0 + (b_S - b_0) n / ramp.tokens`, and b_S from `ramp.tokens` on.

    Args:
        ramp: None gives every step the full batch.
        batch_size: rows of the full batch.
        length: tokens of a row.
        steps: updates.
    """
    sizes, first_row = ramp_sizes(ramp, batch_size), [0]
    for _ in range(steps):
        share = 1.0 if ramp is None else min(1.0, first_row[-1] * length / ramp.tokens)
        wanted = sizes[0] + (batch_size - sizes[0]) * share
        first_row.append(first_row[-1] + max(size for size in sizes if size <= wanted))
    return BatchPlan(np.array(first_row, np.int64), batch_size)
