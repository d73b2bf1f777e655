"""Figures over blanks, by hand."""

import numpy as np
import pytest

from gptjax.evaluation.infilling import infilling_figures


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_figures_by_hand(batch_size):
    """Four blanks of 2, 1, 3 and 1 tokens, two of them number 1 of two examples in one row.

    End tokens and Part A are not counted.
    """
    blanks = np.array([[0, 1, 1, 0, 1], [0, 0, 1, 1, 1], [1, 0, 0, 0, 0]])
    segments = np.array([[1, 1, 1, 2, 2], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    losses = np.array([[9.0, 1.0, 2.0, 9.0, 3.0], [9.0, 9.0, 0.0, 1.0, 2.0], [5.0, 9.0, 9.0, 9.0, 9.0]])
    right = np.array([[0, 1, 1, 1, 0], [1, 1, 1, 0, 1], [1, 0, 0, 0, 0]], bool)
    rows = {name: np.arange(15).reshape(3, 5) for name in ("tokens", "targets", "positions")}
    rows |= {"blanks": blanks, "segment_ids": segments}

    def scores(params, batch):
        index = batch["tokens"][:, 0] // 5
        return losses[index], right[index]

    figures = infilling_figures(scores, None, rows, batch_size)
    assert figures == {
        "loss": pytest.approx(14 / 7),
        "accuracy": pytest.approx(5 / 7),
        "exact": pytest.approx(2 / 4),
        "tokens": 7,
        "blanks": 4,
    }
