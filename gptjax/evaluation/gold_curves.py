"""Gold reward against distance, of best-of-n and of PPO under each proxy (Gao et al. 2022).

Read top to bottom: configuration, replies, tracked runs, run; the curves are in `gold_figures.py`.
Legend: P held-out prompts, n replies to each.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
from pydantic import Field

from gptjax.config import ConfigError, configclass
from gptjax.errors import require
from gptjax.evaluation import charts
from gptjax.evaluation.document import markdown_table
from gptjax.evaluation.gold_figures import (
    BEST_OF_N,
    GOLD,
    PPO,
    best_of_n_curve,
    curves_table,
    drawing,
    make_units,
    ppo_curve,
)
from gptjax.evaluation.tracked import Track, read_track
from gptjax.generation.sampling import SamplingConfig, check_whole
from gptjax.ranges import Count, NonNegative, Seed
from gptjax.runs import mark_done, open_run, read_done, stage_done
from gptjax.sharding.mesh import MeshConfig, check_batch, make_mesh, to_host
from gptjax.stages.handover import TrainedModel, check_fit, load_model
from gptjax.stages.keys import stage_key
from gptjax.stages.many_replies import make_replies, prompt_batches
from gptjax.stages.ppo_data import encode_prompts, reply_lengths
from gptjax.stages.ppo_evaluation import heldout_prompts


@configclass
class GoldCurvesConfig:
    """A measurement of proxies by the gold reward model that labelled their data.

    Attributes:
        policy: run folder of the initial policy.
        gold: run folder of the gold reward model.
        proxies: name -> run folder of a reward model trained on its labels.
        ppo: name of a proxy -> run folder of PPO on it, tracked with the gold reward model.
        prompts, prompt_length, sampling: as in PPO.
        asked: held-out prompts.
        n: replies to each, the largest n of best-of-n.
        batch_size: prompts answered at a time.
        missing_eos_penalty: what a reply that never ends loses when the best is chosen.
        draws: resamples of the intervals.
        mesh, seed: as elsewhere.
    """

    policy: str = ""
    gold: str = ""
    proxies: Annotated[dict[str, str], Field(min_length=1)]
    ppo: dict[str, str] = Field(default_factory=dict)
    prompts: str = "ratings"
    prompt_length: Count = 48
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=32)
    asked: Count = 64
    n: Count = 64
    batch_size: Count = 8
    missing_eos_penalty: NonNegative = 1.0
    draws: Count = 2000
    mesh: MeshConfig = MeshConfig()
    seed: Seed = 0

    def __post_init__(self):
        check_batch(self.batch_size, self.mesh)
        check_whole(self.sampling, "best-of-n")
        if self.asked % self.batch_size:
            raise ValueError(
                f"batch_size = {self.batch_size} does not divide asked = {self.asked}: use a divisor of it"
            )
        if self.n < 4:
            raise ValueError(f"n = {self.n}: a curve through the best of 2 and of more needs 4 replies")
        if GOLD in self.proxies:
            raise ValueError(f"a proxy is called '{GOLD}': call it something else")
        unknown = sorted(set(self.ppo) - set(self.proxies))
        if unknown:
            raise ValueError(f"ppo names '{unknown[0]}', which is no proxy: add it to proxies")


def draw_replies(
    config: GoldCurvesConfig, base: TrainedModel, judges: Mapping[str, TrainedModel], mesh: jax.sharding.Mesh
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """n replies to each of some held-out prompts, scored by every judge.

    Returns:
        judge -> raw rewards, float64 `[P, n]`; and whether each reply ended, bool `[P, n]`.

    Raises:
        ConfigError: there are fewer prompts.
    """
    prompts = encode_prompts(heldout_prompts(config), base.tokenizer, config.prompt_length)
    if len(prompts) < config.asked:
        raise ConfigError(f"asked = {config.asked}, but {len(prompts)} held-out prompts fit: lower it")
    batch_at = prompt_batches(prompts, config, base.tokenizer.pad_id, mesh)
    replies = make_replies(base, judges, config.sampling, config.n)
    key, batches = stage_key(config.seed, "gold curves"), []
    for number in range(config.asked // config.batch_size):
        keys = jax.random.split(jax.random.fold_in(key, number), config.batch_size * config.n)
        with jax.set_mesh(mesh):
            rollout, scores = replies(batch_at(number), keys)
        batches.append(to_host((scores, rollout.ended.reshape(-1, config.n))))
        drawn = (number + 1) * config.batch_size * config.n
        print(f"gold curves: {drawn} of {config.asked * config.n} replies", flush=True)
    scores = {name: np.concatenate([batch[name] for batch, _ in batches]) for name in judges}
    ended = np.concatenate([ended for _, ended in batches])
    return {name: values.astype(np.float64) for name, values in scores.items()}, ended


def check_track(config: GoldCurvesConfig, name: str, track: Track) -> None:
    """Refuses a run of PPO that was not measured as the curves need it.

    Raises:
        ConfigError: it had another policy, proxy or gold reward model, other replies, or too few
            measurements.
    """
    folder, found = config.ppo[name], track.config
    for key, wanted, given in (
        ("policy", config.policy, found.policy),
        ("reward", config.proxies[name], found.reward),
        ("tracking.gold", config.gold, found.tracking.gold),
    ):
        if Path(wanted).absolute() != Path(given).absolute():
            raise ConfigError(f"{folder} has {key} = '{given}', but here it must be '{wanted}'")
    for key in ("prompts", "prompt_length", "sampling"):
        wanted, given = getattr(config, key), getattr(found, key)
        if wanted != given:
            raise ConfigError(
                f"{folder} has {key} = {given}, but here it is {wanted}: the replies must be alike"
            )
    if found.ensemble or found.conventions.cut_at:
        raise ConfigError(
            f"{folder} is paid by an ensemble or for cut replies, which best-of-n here does not know"
        )
    away = len({row["kl"] for row in track.rows if row["kl"] > 0})
    if away < 2:
        raise ConfigError(
            f"{folder} was measured at {away} distances from its reference, and a curve needs two: lower "
            "tracking.every"
        )


def run(config: GoldCurvesConfig, folder: Path) -> None:
    """Measures every proxy; figures are in `done.json`, the drawing in `gold_curves.svg` and `.png`."""
    folder = open_run(folder, config)
    if stage_done(folder):
        print(f"gold curves: already done in {folder}")
        return
    require("matplotlib")
    started, mesh = time.monotonic(), make_mesh(config.mesh)
    base = load_model(config.policy, mesh, "language")
    folders = {GOLD: config.gold, **config.proxies}
    judges = {name: load_model(path, mesh, "scalar") for name, path in folders.items()}
    check_fit(
        reply_lengths(config),
        {config.policy: base} | {folders[name]: judge for name, judge in judges.items()},
    )
    tracks = {name: read_track(path) for name, path in config.ppo.items()}
    for name, track in tracks.items():
        check_track(config, name, track)
    scores, ended = draw_replies(config, base, judges, mesh)
    units, found, of_draws = make_units(scores), {}, (config.draws, config.seed)
    gold = scores[GOLD] * units.of(GOLD)
    for name, path in config.proxies.items():
        choosing, scaled = scores[name] - config.missing_eos_penalty * ~ended, scores[name] * units.of(name)
        found[name] = {"accuracy": read_done(path)["heldout"]["accuracy"], "scale": units.scale[name]}
        found[name][BEST_OF_N] = best_of_n_curve(choosing, gold, scaled, *of_draws)
        if name in tracks:
            track, unit = tracks[name], (units.of(GOLD), units.of(name))
            found[name][PPO] = ppo_curve(track.start, track.rows, *unit, *of_draws)
    print(markdown_table(curves_table(found)), flush=True)
    for ending in ("svg", "png"):
        charts.write_gold_curves(folder / f"gold_curves.{ending}", drawing(found))
    seconds = time.monotonic() - started
    mark_done(folder, {"seconds": seconds, "tokens": 0, "gold_spread": units.spread, "proxies": found})
