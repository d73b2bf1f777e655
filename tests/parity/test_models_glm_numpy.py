"""GLM, GLM-130B and ChatGLM-6B against a model in plain numpy, written from the papers' formulas alone.

Du et al. 2021, section 2: the mask of Part A and Part B, two learned positions, pre-norm. Zeng et al. 2022,
section 2.1: `DeepNorm(x) = norm(alpha x + f(x))`, GeGLU, rotary positions. ChatGLM-6B: half of a head's
channels turn by the index in Part A, half by the place in the blank. Everything is float64.
"""

from functools import lru_cache, partial

import glm_case
import jax
import numpy as np
import pytest
from numpy_slopes import check_numpy, numpy_scalar

C = 8  # of each of two heads


def norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def turn(x, position):
    """Each pair (i, i + C / 2) of the channels of `[L, C]` as a complex number, turned by its angle."""
    half = x.shape[-1] // 2
    pairs = x[:, :half] + 1j * x[:, half:]
    pairs = pairs * np.exp(1j * position[:, None] * 10_000.0 ** (-np.arange(half) / half))
    return np.concatenate([pairs.real, pairs.imag], -1)


def rotate(x, places, positions):
    if positions == "rotary":
        return turn(x, places[:, 0] + places[:, 1])
    if positions == "rotary_2d":
        return np.concatenate([turn(x[:, : C // 2], places[:, 0]), turn(x[:, C // 2 :], places[:, 1])], -1)
    return x


@lru_cache
def seen_by_each(row):
    """For each token of a row the tokens it sees, one by one from the paper's words."""
    rows = glm_case.rows()
    in_a, segments = rows["positions"][row, :, 1] == 0, rows["segment_ids"][row]
    size = (segments > 0).sum()
    seen = np.zeros((size, size), bool)
    for i in range(size):
        for j in range(size):
            if segments[i] == segments[j]:
                seen[i, j] = in_a[j] or (not in_a[i] and j <= i)
    return seen


def attention(x, p, places, row, positions):
    q, k, v = (linear(x, p[name]) for name in ("query", "key", "value"))
    heads = []
    for h in (slice(0, C), slice(C, 2 * C)):
        scores = rotate(q[:, h], places, positions) @ rotate(k[:, h], places, positions).T / np.sqrt(C)
        weights = np.exp(scores) * seen_by_each(row)
        heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, h])
    return linear(np.concatenate(heads, -1), p["output"])


def feed_forward(x, p, activation):
    if activation == "geglu":
        return linear(gelu(linear(x, p["gate"])) * linear(x, p["up"]), p["down"])
    return linear(gelu(linear(x, p["up"])), p["down"])


def numpy_logits(params, config, tokens, places, row):
    """The forward pass of one row."""
    x, alpha = params["embedding"][tokens], np.sqrt(2 * config.layers)
    if config.positions == "learned":
        x = x + params["positions"][places[:, 0]] + params["block_positions"][places[:, 1]]
    if config.deep_norm:
        x = norm(x, params["norm"])
    for n in range(config.layers):
        p = jax.tree.map(lambda a, n=n: a[n], params["blocks"])
        rest = p["attention"], places, row, config.positions
        if config.deep_norm:
            x = norm(alpha * x + attention(x, *rest), p["attention_norm"])
            x = norm(alpha * x + feed_forward(x, p["mlp"], config.activation), p["mlp_norm"])
        else:
            x = x + attention(norm(x, p["attention_norm"]), *rest)
            x = x + feed_forward(norm(x, p["mlp_norm"]), p["mlp"], config.activation)
    x = x if config.deep_norm else norm(x, params["norm"])
    return x @ params["embedding"].T


def numpy_forward(params, config):
    """(scalar, logits of the real tokens of each row), as `lineage.scalar_of`."""
    rows, logits = glm_case.rows(), []
    for row, size in enumerate((rows["segment_ids"] > 0).sum(1)):
        tokens, places = rows["tokens"][row, :size], rows["positions"][row, :size]
        logits.append(numpy_logits(params, config, tokens, places, row))
    return numpy_scalar(logits), logits


@pytest.mark.parametrize("name", glm_case.CONFIGS)
def test_logits_and_gradients_equal_numpy(name):
    """Each parameter array's gradient along a random direction against a central difference of the scalar."""
    case = glm_case.case(name)
    check_numpy(name, case, partial(numpy_forward, config=case[0].config))
