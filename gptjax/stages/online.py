"""Iterated online RLHF: rounds of deploy, sample, label, reward model, PPO (Bai et al. 2022, HH).

A round draws K replies to some prompts from the deployed policy, has them ranked, trains a reward model on
the rankings of all rounds so far, and aligns a policy with it, which the next round deploys. At the end the
policies of all rounds meet on held-out prompts. With `static` the same number of rankings is drawn from the
first policy, in one round. Read top to bottom: configuration, a round, run; what a round is lies in
`rounds.py`.
"""

import dataclasses
import time
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Annotated, Literal

import jax
from pydantic import Field

from gptjax.config import ConfigError, configclass
from gptjax.data.chat import render_prompt
from gptjax.data.preferences import RankedReplies, read_preferences
from gptjax.data.quality import BadRows
from gptjax.data.ratings import load_ratings, ranked_replies, split_ratings
from gptjax.errors import require
from gptjax.ranges import BelowOne, Count, Seed
from gptjax.runs import mark_done, open_run, read_done, stage_done, write_jsonl_atomic
from gptjax.sharding.mesh import make_mesh
from gptjax.stages import ppo, reward
from gptjax.stages.handover import TrainedModel, check_fit, load_model, model_kind, save_model
from gptjax.stages.keys import stage_key
from gptjax.stages.labels import LabelerConfig, contrary, labelled, read_rows, score_replies, write_union
from gptjax.stages.ppo import PpoConfig
from gptjax.stages.ppo_data import fitting_prompts, ppo_lengths, read_prompts
from gptjax.stages.reward import RewardConfig
from gptjax.stages.road_checks import HANDED_OVER
from gptjax.stages.rounds import FIRST, Round, schedule, start_of
from gptjax.stages.samples import draw_samples, prompts_of_round, shares
from gptjax.stages.tournament import hold_tournament
from gptjax.training.metrics import MetricsWriter, read_metrics, seconds_spent


@configclass
class OnlineConfig:
    """Rounds of labelling and alignment.

    Attributes:
        policy: run folder of the fine-tuned model, which the first round deploys.
        rankings: what has been ranked before the first round: "ratings", a path to JSONL preferences, or "".
        rounds: how many.
        prompts: prompts labelled in a round; every one makes one ranking.
        replies: replies to each (K).
        earlier: share of a round's prompts that policies before the latest reply to.
        static: the control: all rankings, rounds x prompts, are of replies of the first policy; one reward
            model, and one PPO of rounds x `ppo.iterations`.
        start: what PPO starts from, and keeps to as its reference: the "first" policy, the "latest", the
            "best" by the labeler's mean score of its samples when it was the latest, or that of a round by
            its number, before which it is the latest.
        labeler: who ranks.
        reward: the reward model of every round; `source` and `seed` are filled in, and `base`, unless it is
            a reward model to go on from.
        ppo: the alignment of every round; its `prompts`, `prompt_length` and `sampling` are those of the
            samples as well, `eval_prompts` those of the comparison; `policy`, `reward` and `seed` are filled
            in.
        rivals: name -> run folder of policies that are compared with those of the rounds.
        seed: as elsewhere; every round has its own.
    """

    policy: str = ""
    rankings: str = ""
    rounds: Count = 3
    prompts: Count
    replies: Annotated[int, Field(ge=2)] = 4
    earlier: BelowOne = 0.0
    static: bool = False
    start: Literal["first", "latest", "best"] | Count = "first"
    labeler: LabelerConfig
    reward: RewardConfig
    ppo: PpoConfig
    rivals: dict[str, str] = Field(default_factory=dict)
    seed: Seed = 0

    def __post_init__(self):
        filled_in = {
            "reward.source": self.reward.source != "ratings",
            "reward.seed": self.reward.seed,
            "ppo.policy": self.ppo.policy,
            "ppo.reward": self.ppo.reward,
            "ppo.seed": self.ppo.seed,
        }
        for key, given in filled_in.items():
            if given:
                raise ValueError(f"{key} has no effect in rounds, which fill it in: leave it out")
        if self.reward.at_most is not None:
            raise ValueError("reward.at_most would leave the labels of later rounds out: leave it out itself")
        if self.ppo.conventions.cut_at:
            raise ValueError(
                "ppo.conventions.cut_at is not known to rounds, which label whole replies: leave it out"
            )
        if self.replies > self.reward.k_max:
            raise ValueError(
                f"reward.k_max = {self.reward.k_max} is below replies = {self.replies}: raise it"
            )
        longest = self.ppo.prompt_length + self.ppo.sampling.max_new_tokens
        if self.reward.length <= longest:
            raise ValueError(
                f"reward.length = {self.reward.length} must be above ppo.prompt_length + "
                f"ppo.sampling.max_new_tokens = {longest}: raise it"
            )
        if self.labeler.kind == "simulated" and not self.labeler.reward:
            raise ValueError("labeler.reward must name the reward model by which a simulated labeler ranks")
        if self.start == "best" and not self.labeler.reward:
            raise ValueError("start = 'best' needs labeler.reward, by whose scores policies are compared")
        names = {FIRST, *(current.name for current in schedule(self))}
        for name in self.rivals:
            if name in names:
                raise ValueError(
                    f"rivals: '{name}' is what one of the run's own policies is called: rename it"
                )


def earlier_rankings(config: OnlineConfig) -> list[RankedReplies]:
    """What has been ranked before the first round; prints what of a file was left out."""
    if not config.rankings:
        return []
    if config.rankings == "ratings":
        sizes = {"k_min": config.reward.k_min, "k_max": config.reward.k_max}
        texts = split_ratings(load_ratings())[0]
        return ranked_replies(texts, groups=config.reward.groups, seed=config.seed, **sizes)
    bad_rows = BadRows()
    rankings = read_preferences(config.rankings, bad_rows)
    print(f"{config.rankings}: read: {bad_rows.summary()}", flush=True)
    return rankings


def sampled(config: OnlineConfig, current: Round, file: Path, policies: dict[str, str], mesh) -> list[dict]:
    """The round's samples, drawn from the deployed policies unless the file holds them."""
    if not file.exists():
        *earlier, latest = policies
        parts = shares(latest, earlier, current.prompts, config.earlier)
        models = {name: load_model(policies[name], mesh, "language") for name in parts}
        known = read_prompts(config.ppo.prompts, "train", config.seed)
        fitting = fitting_prompts(known, models[latest].tokenizer, config.ppo.prompt_length)
        order = prompts_of_round(fitting, current.number, len(schedule(config)), config.seed)
        numbered, key, rows = zip(count(), order), stage_key(config.seed, f"samples of {current.name}"), []
        for name, part in parts.items():
            rows += draw_samples(models[name], name, numbered, part, key, config)
        write_jsonl_atomic(file, rows)
    return read_rows(file)


def stage_configs(
    config: OnlineConfig, current: Round, folder: Path, start: str
) -> tuple[RewardConfig, PpoConfig]:
    """The configurations of the round's two stages, with sources, bases and the round's own seed."""
    seed = int(jax.random.bits(stage_key(config.seed, f"seed of {current.name}")))
    learn = {"base": config.reward.base or config.policy, "source": str(folder / "rankings.jsonl")}
    align = {"policy": start, "reward": str(folder / "reward"), "iterations": current.iterations}
    return (
        dataclasses.replace(config.reward, seed=seed, **learn),
        dataclasses.replace(config.ppo, seed=seed, **align),
    )


def play(
    config: OnlineConfig,
    current: Round,
    folder: Path,
    policies: dict[str, str],
    gold: TrainedModel | None,
    rankings: list[RankedReplies],
    worth: dict[str, float],
    mesh,
) -> tuple[list[RankedReplies], dict[str, float]]:
    """One round, from where it stands; its policy is left in `ppo` of its folder.

    Args:
        config, current: what to do.
        folder: the round's.
        policies: name -> run folder, the latest last.
        gold: the labeler's reward model, if there is one.
        rankings: of all rounds before.
        worth: policy -> the labeler's mean score of its samples as the latest policy; this round's is added.
        mesh: of policies and `gold`.

    Returns:
        the round's rankings, and its figures.
    """
    folder.mkdir(exist_ok=True)
    samples = sampled(config, current, folder / "samples.jsonl", policies, mesh)
    scores, figures = None, {}
    if gold is not None:
        prompts = [render_prompt(sample["prompt"], gold.tokenizer) for sample in samples]
        scores = score_replies(gold, prompts, [sample["completions"] for sample in samples], config.reward)
    key = stage_key(config.seed, f"labels of {current.name}")
    labels = labelled(config.labeler, samples, scores, key, folder)
    if scores is not None:
        figures = {"labels/contrary": contrary(labels, scores), "samples/gold": float(scores.mean())}
        deployed = list(policies)[-1]
        worth[deployed] = float(scores[[sample["source"] == deployed for sample in samples]].mean())
    write_union(folder, [*rankings, *labels])
    start = policies[start_of(config, list(policies), worth)]
    reward_config, ppo_config = stage_configs(config, current, folder, start)
    # Where the run lies is no setting: its folder may be moved, or be written in another way.
    reward.run(reward_config, folder / "reward", may_change=(*HANDED_OVER, "source"))
    ppo.run(ppo_config, folder / "ppo", may_change=HANDED_OVER)
    learnt, aligned = (read_done(folder / stage)["heldout"] for stage in ("reward", "ppo"))
    figures |= {
        "labels/rankings": len(rankings) + len(labels),
        "reward/accuracy": learnt["accuracy"],
        "ppo/kl": aligned["kl"],
        "ppo/reward": aligned["policy"]["reward"],
        "ppo/lexicon": aligned["policy"]["lexicon"],
    }
    return labels, figures


def load_models(config: OnlineConfig, mesh) -> TrainedModel | None:
    """The labeler's reward model, if there is one; what cannot work is refused before anything is done.

    Raises:
        ConfigError: a model is not there, is of another kind, or does not fit the others or the lengths.
    """
    models = {config.policy: load_model(config.policy, mesh, "language")}
    if config.labeler.reward:
        models[config.labeler.reward] = load_model(config.labeler.reward, mesh, "scalar")
    if config.reward.base:
        models[config.reward.base] = load_model(config.reward.base, mesh)
    gold = config.ppo.tracking.gold if config.ppo.tracking else ""
    for judge in filter(None, (*config.ppo.ensemble, gold)):
        models[judge] = load_model(judge, mesh, "scalar")
    for name, rival in config.rivals.items():
        if model_kind(rival) != "language":
            raise ConfigError(f"rivals: {name} = {rival} holds no finished policy: run what makes it first")
        models[rival] = load_model(rival, mesh, "language")
    lengths = {f"ppo.{name}": length for name, length in ppo_lengths(config.ppo).items()}
    check_fit(lengths | {"reward.length": config.reward.length}, models)
    return models.get(config.labeler.reward)


def run(config: OnlineConfig, folder: Path, may_change: Iterable[str] = ()) -> None:
    """Plays the rounds that are left, compares their policies, and leaves the last in `folder`.

    `may_change` names keys that may differ from an earlier start in this folder.

    Raises:
        ConfigError: there are several processes: what is done next is read from files, by each at its time.
        SystemExit: code 66 where people have not ranked a round's samples yet.
    """
    if jax.process_count() > 1:
        raise ConfigError(
            f"rounds of labels are played by one process, and these are {jax.process_count()}: start one, or "
            "run the reward and PPO stages of a round by themselves"
        )
    folder = open_run(folder, config, may_change=may_change)
    if stage_done(folder):
        print(f"online: already done in {folder}")
        return
    require("vaderSentiment")
    started, mesh = time.monotonic() - seconds_spent(folder), make_mesh(config.ppo.mesh)
    gold, rounds = load_models(config, mesh), schedule(config)
    rankings = earlier_rankings(config)
    before, policies, worth = len(rankings), {FIRST: config.policy}, {}
    writer = MetricsWriter(folder, started)
    writer.truncate_after(len(rounds))
    logged = len(read_metrics(writer.path)) if writer.path.exists() else 0
    for current in rounds:
        print(f"\n{current.name} of {len(rounds)}", flush=True)
        labels, figures = play(config, current, folder / current.name, policies, gold, rankings, worth, mesh)
        rankings = [*rankings, *labels]
        policies[current.name] = str(folder / current.name / "ppo")
        if current.number > logged:
            writer.write(current.number, figures, "online")
    writer.close()

    figures = hold_tournament(config, policies | config.rivals, gold, folder, mesh)
    last = load_model(policies[rounds[-1].name], mesh, "language")
    save_model(folder, "language", last.definition.config, last.params, last.tokenizer)
    stages = [read_done(folder / name / stage) for name in list(policies)[1:] for stage in ("reward", "ppo")]
    summary = {"seconds": time.monotonic() - started, "tokens": sum(done["tokens"] for done in stages)}
    own = rankings[before:]
    counted = {"labels": len(own), "pairs": sum(ordered_pairs(ranked.scores) for ranked in own)}
    mark_done(folder, summary | counted | {"heldout": figures})


def ordered_pairs(scores: list[float]) -> int:
    """How many pairs of a ranking's replies are no tie."""
    return sum(one > other for one in scores for other in scores)
