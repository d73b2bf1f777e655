"""The curves of over-optimisation: their units, points, fits and table.

Legend: P held-out prompts, n replies to each, N points of a curve, S resamples.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gptjax.evaluation.best_of_n import best_of_n_kl, doublings, expected_best_of_n
from gptjax.evaluation.calibration import fit_scale
from gptjax.evaluation.document import Table
from gptjax.evaluation.overoptimization import Kind, bootstrap_intervals, fit_gold, resampled_fits, turnover

GOLD = "gold"
BEST_OF_N, PPO = "best_of_n", "ppo"
KINDS: dict[str, Kind] = {BEST_OF_N: "best_of_n", PPO: "rl"}


@dataclass(frozen=True)
class Units:
    """How raw rewards become those of the curves: differences in standard deviations of gold.

    Attributes:
        spread: standard deviation of the gold reward over the initial policy's replies.
        scale: proxy -> by how much its rewards are multiplied to be those of gold.
    """

    spread: float
    scale: dict[str, float]

    def of(self, name: str) -> float:
        """What differences of this judge's raw rewards are multiplied by."""
        return self.scale.get(name, 1.0) / self.spread


def make_units(scores: Mapping[str, np.ndarray]) -> Units:
    """The units of the curves from `[P, n]` scores of gold and proxies.

    A proxy is scaled so that `sigmoid` of its differences is closest to that of gold, on pairs of replies to
    one prompt.
    """
    gaps = {name: np.diff(values, axis=1).reshape(-1) for name, values in scores.items()}
    preferred = 1 / (1 + np.exp(-gaps[GOLD]))
    scale = {name: fit_scale(gap, preferred) for name, gap in gaps.items() if name != GOLD}
    return Units(float(scores[GOLD].std()), scale)


def best_of_n_curve(choosing: np.ndarray, gold: np.ndarray, proxy: np.ndarray, draws: int, seed: int) -> dict:
    """What the best of n = 1, 2, 4 and so on earns, the intervals over prompts.

    Args:
        choosing: `[P, n]`, by which the best is chosen.
        gold, proxy: `[P, n]`, in units of the curves; their zero is taken from the mean over all replies.
        draws, seed: of the bootstrap.
    """
    sizes = doublings(choosing.shape[1])
    gold_PxN, proxy_PxN = (
        np.stack([expected_best_of_n(choosing, n, values - values.mean()) for n in sizes], axis=1)
        for values in (gold, proxy)
    )
    points = [
        {"n": n, "kl": best_of_n_kl(n), "gold": float(g), "proxy": float(p)}
        for n, g, p in zip(sizes, gold_PxN.mean(0), proxy_PxN.mean(0), strict=True)
    ]
    index = np.random.default_rng(seed).integers(0, len(gold), (draws, len(gold)))
    gold_SxN = gold_PxN[index].mean(1)
    distance_SxN = np.broadcast_to(np.sqrt([point["kl"] for point in points]), gold_SxN.shape)
    # Each resample of prompts has its own zero: the mean of its replies, which is the best of 1.
    return described(points, BEST_OF_N, distance_SxN, gold_SxN - gold_SxN[:, :1])


def ppo_curve(
    start: Mapping[str, float],
    rows: Sequence[Mapping[str, float]],
    gold_unit: float,
    proxy_unit: float,
    draws: int,
    seed: int,
) -> dict:
    """What a tracked run of PPO earned, the intervals over its measurements.

    Args:
        start, rows: of a `Track`.
        gold_unit, proxy_unit: what raw differences are multiplied by.
        draws, seed: of the bootstrap.
    """
    points = [
        {
            "step": row["step"],
            "kl": max(row["kl"], 0.0),  # an estimate from samples may be a little below 0
            "gold": (row["gold"] - start["gold"]) * gold_unit,
            "proxy": (row["reward"] - start["reward"]) * proxy_unit,
        }
        for row in ({"step": 0, **start}, *rows)
    ]
    distance, gold = (np.array([point[key] for point in points[1:]]) for key in ("kl", "gold"))
    index = np.random.default_rng(seed).integers(0, len(gold), (draws, len(gold)))
    return described(points, PPO, np.sqrt(distance)[index], gold[index])


def described(points: Sequence[dict], optimiser: str, distance_SxN: np.ndarray, gold_SxN: np.ndarray) -> dict:
    """A curve with its fit, intervals, and where it turns.

    Args:
        points: "kl", "gold" and "proxy" of every point, in order, from the initial policy on.
        optimiser: a key of `KINDS`.
        distance_SxN, gold_SxN: resamples, in sqrt(nats) and units of the curves.

    Returns:
        `points`; `alpha`, `beta`, `r_squared` and `peak` (sqrt(nats), None where it never falls) of the fit;
        `intervals`; `farthest`, the largest measured distance, `turns_within`, whether the peak lies before
        it, and if so its `peak_gold`; `highest`, the highest point and what was lost after it; `end`.
    """
    roots, gold = np.sqrt([point["kl"] for point in points]), np.array([point["gold"] for point in points])
    fit, farthest = fit_gold(roots, gold, KINDS[optimiser]), float(roots.max())
    within = fit.peak is not None and fit.peak < farthest
    return {
        "points": list(points),
        "alpha": fit.alpha,
        "beta": fit.beta,
        "r_squared": fit.r_squared,
        "intervals": bootstrap_intervals(resampled_fits(distance_SxN, gold_SxN, fit.kind), fit.kind),
        "peak": fit.peak,
        "peak_gold": float(fit.gold(fit.peak)) if within else None,
        "farthest": farthest,
        "turns_within": within,
        "highest": turnover(roots, gold),
        "end": {key: points[-1][key] for key in ("kl", "gold", "proxy")},
    }


def curves_table(proxies: Mapping[str, Mapping]) -> Table:
    """A row a proxy and optimiser: coefficients with intervals, the peak of the fit, the last point.

    Args:
        proxies: name -> "accuracy" and a curve for every optimiser.
    """
    header = ("proxy", "accuracy", "optimiser", "alpha", "beta", "peak, nats", "gold there", "within")
    header += ("to, nats", "gold", "proxy")
    rows = []
    for name, found in proxies.items():
        for optimiser in [key for key in KINDS if key in found]:
            curve = found[optimiser]
            around, within = curve["intervals"], curve["turns_within"]
            rows.append(
                [name, f"{found['accuracy']:.3f}", optimiser]
                + [f"{curve[key]:.3f} {_interval(around[key], '{:.3f}'.format)}" for key in ("alpha", "beta")]
                + [f"{_nats(curve['peak'])} {_interval(around['peak'], _nats)}"]
                + [f"{curve['peak_gold']:.2f}" if within else "", "yes" if within else "no"]
                + [f"{curve['farthest'] ** 2:.2f}"]
                + [f"{curve['end'][key]:.2f}" for key in ("gold", "proxy")]
            )
    return Table(header, rows, numeric=frozenset({1, *range(3, 7), *range(8, 11)}))


def _interval(ends: Sequence[float | None] | None, shown: Callable[[float | None], str]) -> str:
    return "" if ends is None else f"({' to '.join(map(shown, ends))})"


def _nats(distance: float | None) -> str:
    if distance is None:
        return "never"
    return f"{distance**2:.2f}" if distance < 100 else "above 10,000"


def drawing(proxies: Mapping[str, Mapping]) -> dict[str, dict[str, dict[str, list]]]:
    """What `charts.write_gold_curves` draws; the argument is that of `curves_table`."""
    panels: dict[str, dict[str, dict[str, list]]] = {}
    for name, found in proxies.items():
        for optimiser in [key for key in KINDS if key in found]:
            points = found[optimiser]["points"]
            roots, gold = ([math.sqrt(p["kl"]) for p in points], [p["gold"] for p in points])
            grid = np.linspace(0, max(roots), 100)
            panels.setdefault(optimiser, {})[name] = {
                "gold": list(zip(roots, gold, strict=True)),
                "proxy": list(zip(roots, [p["proxy"] for p in points], strict=True)),
                "fit": list(zip(grid, fit_gold(roots, gold, KINDS[optimiser]).gold(grid), strict=True)),
            }
    return panels
