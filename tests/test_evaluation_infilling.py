"""Figures over blanks, by hand."""

import numpy as np
import pytest

from gptjax.evaluation.infilling import infilling_figures


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_figures_by_hand(batch_size):
    """Three rows with four blanks, of 2, 1, 3 and 1 tokens; end tokens and Part A are not counted."""
    blanks = np.array([[0, 1, 1, 0, 2], [0, 0, 1, 1, 1], [1, 0, 0, 0, 0]])
    losses = np.array([[9.0, 1.0, 2.0, 9.0, 3.0], [9.0, 9.0, 0.0, 1.0, 2.0], [5.0, 9.0, 9.0, 9.0, 9.0]])
    right = np.array([[0, 1, 1, 1, 0], [1, 1, 1, 0, 1], [1, 0, 0, 0, 0]], bool)
    names = ("tokens", "targets", "positions", "segment_ids")
    rows = {name: np.arange(15).reshape(3, 5) for name in names} | {"blanks": blanks}

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
