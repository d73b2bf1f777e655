"""What aligning costs elsewhere, along tracked runs of PPO, by their KL and ptx coefficients.

Ouyang et al. 2022, table 14 and figures 33 and 34: alignment loses what was learnt before; a penalty on the
divergence does not bring it back, the gradient of pretraining text does.
"""

import math
import time
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Annotated

from pydantic import Field

from gptjax.config import ConfigError, configclass
from gptjax.errors import require
from gptjax.evaluation import charts
from gptjax.evaluation.document import Table, markdown_table
from gptjax.evaluation.tracked import Track, read_track
from gptjax.runs import mark_done, open_run, stage_done
from gptjax.stages.ppo_evaluation import DIVERGENCES

# What decides on what, and by whom, a run is measured.
ALIKE = (
    *("policy", "reward", "ensemble", "prompts", "prompt_length", "sampling", "seed"),
    *("eval_prompts", "eval_bytes", "corpora", "ptx_length", "conventions.cut_at", "conventions.cut_after"),
    *("tracking.gold", "tracking.answer_tokens", "tracking.shots"),
)


@configclass
class AlignmentTaxConfig:
    """A comparison of tracked runs of PPO.

    Attributes:
        ppo: name -> run folder, all from one policy and paid by one reward model.
    """

    ppo: Annotated[dict[str, str], Field(min_length=1)]


def check_alike(tracks: Mapping[str, Track]) -> None:
    """Refuses runs whose figures cannot be laid beside each other.

    Raises:
        ConfigError: two differ in policy, reward model or what they are measured on.
    """
    first, *others = tracks
    for other in others:
        for key in ALIKE:
            ours, theirs = (attrgetter(key)(tracks[name].config) for name in (first, other))
            if ours != theirs:
                raise ConfigError(f"the runs '{first}' and '{other}' differ in {key}: {ours} and {theirs}")


def shared_figures(tracks: Mapping[str, Track]) -> list[str]:
    """The figures, apart from the divergences, that every measurement of every run has."""
    rows = [row for track in tracks.values() for row in track.rows]
    if not rows:
        raise ConfigError("none of these runs was measured along the way: lower tracking.every")
    others = [name for name in rows[0] if name not in ("step", *DIVERGENCES)]
    return [name for name in others if all(name in row for row in rows)]


def summary(track: Track, figures: list[str]) -> dict:
    """Coefficients, start and end of every figure, and the rise of the text loss."""
    end = track.rows[-1]
    found = {"kl_coef": track.config.kl_coef, "ptx_coef": track.config.ptx_coef, "kl": end["kl"]}
    found |= {
        name: {key: row[key] for key in figures} for name, row in (("start", track.start), ("end", end))
    }
    if "text_loss" in figures:
        found["text_loss_rise"] = end["text_loss"] / track.start["text_loss"] - 1
    return found


def tax_table(summaries: Mapping[str, dict], figures: list[str]) -> Table:
    """A row a run, and first the policy that all began from."""
    header = ["run", "kl_coef", "ptx_coef", "KL, nats", *figures]
    start = next(iter(summaries.values()))["start"]
    rows = [["before PPO", "", "", "0.00"] + [f"{start[figure]:.3f}" for figure in figures]]
    for name, run in summaries.items():
        coefficients = [f"{run[key]:g}" for key in ("kl_coef", "ptx_coef")]
        ends = [f"{run['end'][figure]:.3f}" for figure in figures]
        rows.append([name, *coefficients, f"{run['kl']:.2f}", *ends])
    return Table(header, rows, numeric=frozenset(range(1, len(header))))


def along_the_way(tracks: Mapping[str, Track], figures: list[str]) -> dict:
    """figure -> run -> (sqrt(KL), value) of the start and of every measurement."""
    return {
        figure: {
            name: [(math.sqrt(max(row["kl"], 0.0)), row[figure]) for row in (track.start, *track.rows)]
            for name, track in tracks.items()
        }
        for figure in figures
    }


def by_coefficient(summaries: Mapping[str, dict], figures: list[str]) -> dict:
    """figure -> a line a ptx coefficient -> (KL coefficient, value at the end)."""
    coefficients = sorted({run["ptx_coef"] for run in summaries.values()})
    return {
        figure: {
            f"ptx_coef {ptx:g}": sorted(
                (run["kl_coef"], run["end"][figure]) for run in summaries.values() if run["ptx_coef"] == ptx
            )
            for ptx in coefficients
        }
        for figure in figures
    }


def run(config: AlignmentTaxConfig, folder: Path) -> None:
    """Compares the runs: figures in `done.json`, drawings in `along_the_way.svg` and `by_coefficient.svg`."""
    folder = open_run(folder, config)
    if stage_done(folder):
        print(f"alignment tax: already done in {folder}")
        return
    require("matplotlib")
    started = time.monotonic()
    tracks = {name: read_track(path) for name, path in config.ppo.items()}
    check_alike(tracks)
    figures = shared_figures(tracks)
    summaries = {name: summary(track, figures) for name, track in tracks.items()}
    print(markdown_table(tax_table(summaries, figures)), flush=True)
    drawing = charts.curves(along_the_way(tracks, figures), "square root of the KL (nats)")
    (folder / "along_the_way.svg").write_text(drawing, "utf-8")
    drawing = charts.curves(by_coefficient(summaries, figures), "kl_coef")
    (folder / "by_coefficient.svg").write_text(drawing, "utf-8")
    mark_done(folder, {"seconds": time.monotonic() - started, "tokens": 0, "runs": summaries})
