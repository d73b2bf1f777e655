"""The curves of over-optimisation: the best by the proxy against all sets, units, fits, where they turn."""

import math
from itertools import combinations

import numpy as np
import pytest

from gptjax.evaluation.gold_figures import best_of_n_curve, curves_table, drawing, make_units, ppo_curve

RNG = np.random.default_rng(0)
CHOOSING, GOLD = RNG.normal(size=(2, 5, 6))


def test_the_gold_of_the_best_by_the_proxy_is_the_mean_over_all_sets():
    curve = best_of_n_curve(CHOOSING, GOLD, CHOOSING, draws=10, seed=0)
    assert [point["n"] for point in curve["points"]] == [1, 2, 4, 6]
    for point in curve["points"]:
        n = point["n"]
        best = [
            max(chosen, key=CHOOSING[p].__getitem__) for p in range(5) for chosen in combinations(range(6), n)
        ]
        prompts = np.repeat(np.arange(5), math.comb(6, n))
        assert point["gold"] == pytest.approx(GOLD[prompts, best].mean() - GOLD.mean())
        assert point["proxy"] == pytest.approx(CHOOSING[prompts, best].mean() - CHOOSING.mean())
        assert point["kl"] == pytest.approx(math.log(n) - (n - 1) / n)


def test_the_intervals_of_best_of_n_are_those_of_other_prompts():
    """Of many draws of the same kind the interval holds the coefficient about as often as it says."""
    rng, inside, trials = np.random.default_rng(1), 0, 40

    def curve(prompts, draws):
        choosing = rng.normal(size=(prompts, 8))
        gold = 0.5 * choosing + rng.normal(size=choosing.shape) + rng.normal(size=(prompts, 1))
        return best_of_n_curve(choosing, gold, choosing, draws, seed=0)

    truth = curve(1500, 2)["alpha"]
    for _ in range(trials):
        low, high = curve(40, 200)["intervals"]["alpha"]
        inside += low <= truth <= high
    assert inside / trials >= 0.85  # 0.95 less three standard errors


def test_units_are_gold_s_own_and_the_proxy_s_scale_is_found():
    gold = np.random.default_rng(2).normal(0.7, 2.0, (40, 30))
    units = make_units({"gold": gold, "loud": 10.0 * gold + 3.0, "quiet": 0.25 * gold})
    assert units.spread == pytest.approx(gold.std())
    assert units.scale == {"loud": pytest.approx(0.1, rel=1e-3), "quiet": pytest.approx(4.0, rel=1e-3)}
    assert units.of("gold") * gold.std() == pytest.approx(1.0)
    assert units.of("loud") * 10.0 == pytest.approx(units.of("gold"), rel=1e-3)


def rows_on_a_curve(alpha, beta, kl):
    d = np.sqrt(kl)
    gold = 0.3 + 2.0 * d * (alpha - beta * np.log(d))
    return [
        {"step": 5 * i, "kl": float(k), "gold": float(g), "reward": float(r)}
        for i, (k, g, r) in enumerate(zip(kl, gold, d, strict=True), 1)
    ]


def test_a_run_on_the_curve_gives_its_coefficients_and_its_turn():
    rows = rows_on_a_curve(0.5, 0.3, np.array([0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]))
    start = {"kl": 0.0, "gold": 0.3, "reward": 0.0}
    curve = ppo_curve(start, rows, gold_unit=0.5, proxy_unit=3.0, draws=200, seed=0)
    assert (curve["alpha"], curve["beta"]) == (pytest.approx(0.5), pytest.approx(0.3))
    for name, value in (("alpha", 0.5), ("beta", 0.3)):
        assert curve["intervals"][name] == [pytest.approx(value), pytest.approx(value)]
    assert curve["peak"] == pytest.approx(math.exp(0.5 / 0.3 - 1)) and curve["turns_within"]
    assert curve["highest"]["distance"] == pytest.approx(2.0) and curve["highest"]["lost"] > 0
    assert curve["points"][0] == {"step": 0, "kl": 0.0, "gold": 0.0, "proxy": 0.0}
    assert curve["end"]["proxy"] == pytest.approx(3.0 * math.sqrt(30.0))


def test_a_turn_beyond_what_was_measured_is_said_to_be_beyond():
    rows = rows_on_a_curve(0.5, 0.3, np.array([0.2, 0.5, 1.0, 1.5]))
    curve = ppo_curve({"kl": 0.0, "gold": 0.3, "reward": 0.0}, rows, 0.5, 1.0, draws=20, seed=0)
    assert curve["peak"] > curve["farthest"] and not curve["turns_within"] and curve["highest"] is None
    rising = rows_on_a_curve(0.5, -0.1, np.array([0.2, 0.5, 1.5]))
    curve = ppo_curve({"kl": 0.0, "gold": 0.3, "reward": 0.0}, rising, 0.5, 1.0, draws=20, seed=0)
    assert curve["peak"] is None and not curve["turns_within"] and curve["intervals"]["peak"] == [None, None]
    proxies = {"a": {"accuracy": 0.7, "ppo": curve}}
    (row,) = curves_table(proxies).rows
    assert row[:3] == ["a", "0.700", "ppo"] and "never (never to never)" in row and "no" in row
    assert list(drawing(proxies)) == ["ppo"] and len(drawing(proxies)["ppo"]["a"]["gold"]) == 4


def test_an_estimate_of_the_kl_below_0_counts_as_0():
    rows = rows_on_a_curve(0.5, 0.3, np.array([0.5, 1.0, 2.0]))
    rows[0]["kl"] = -0.01
    curve = ppo_curve({"kl": 0.0, "gold": 0.3, "reward": 0.0}, rows, 0.5, 1.0, draws=20, seed=0)
    assert curve["points"][1]["kl"] == 0.0 and math.isfinite(curve["alpha"])
