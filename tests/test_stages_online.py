"""Rounds of labelling and alignment: who is asked what, equal budgets, people as labelers, and deaths."""

import dataclasses
import json
import shutil
from collections import Counter
from itertools import count, islice
from signal import SIGKILL

import jax
import pytest
import stage_driver
import tiny
from ppo_case import moved

from gptjax.config import ConfigError, to_json
from gptjax.data.corpora import read_documents
from gptjax.data.preferences import read_preferences
from gptjax.data.quality import DataError
from gptjax.data.tokenizers import Tokenizer
from gptjax.errors import WAITING
from gptjax.generation.sampling import SamplingConfig
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel, ScalarModel
from gptjax.overrides import override
from gptjax.runs import mark_done, open_run, read_done
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages import online, ppo, reward
from gptjax.stages.conventions import Conventions
from gptjax.stages.handover import load_model, save_model
from gptjax.stages.labels import LabelerConfig, read_rows
from gptjax.stages.online import OnlineConfig, schedule
from gptjax.stages.ppo import PpoConfig
from gptjax.stages.reward import RewardConfig
from gptjax.stages.rounds import start_of
from gptjax.stages.samples import different, draw_samples, prompts_of_round, shares
from gptjax.stages.tracking import TrackingConfig
from gptjax.training.metrics import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


PPO = PpoConfig(
    prompts="dialogues.jsonl",
    prompt_length=64,
    sampling=SamplingConfig(max_new_tokens=6),
    iterations=1,
    batch_size=12,
    minibatches=1,
    corpora={},
    ema_decay=0.0,
    optimizer=tiny.ADAM,
    value_optimizer=tiny.ADAM,
    eval_prompts=8,
)


def config_of(**changes):
    given = {
        "policy": "language",
        "rounds": 2,
        "prompts": 8,
        "replies": 3,
        "labeler": LabelerConfig(reward="scalar", temperature=1.0),
        "reward": RewardConfig(length=128, batch_size=4, optimizer=tiny.ADAM),
        "ppo": PPO,
    }
    return OnlineConfig(**given | changes)


def learn(config, folder, may_change=()):
    """In place of the reward stage: nothing is learnt."""
    open_run(folder, config, may_change=may_change)
    mark_done(folder, {"tokens": 1, "heldout": {"accuracy": 0.5}})


def align(config, folder, may_change=()):
    """In place of PPO: the policy moves somewhere."""
    open_run(folder, config, may_change=may_change)
    model = load_model(config.policy, make_mesh(MeshConfig()), "language")
    params = moved(model.params, 0.05, config.seed)
    save_model(folder, "language", model.definition.config, params, model.tokenizer)
    mark_done(folder, {"tokens": 1, "heldout": {"kl": 1.0, "policy": {"reward": 0.0, "lexicon": 0.0}}})


def write_models(folder):
    """Untrained models of one tokenizer, prompts and rankings."""
    data = tiny.write_data(folder / "data")
    for name in ("dialogues", "preferences"):
        shutil.copy(data / f"{name}.jsonl", folder)
    tokenizer = Tokenizer.train((d.text for d in read_documents("pydoc")[:10]), vocab_size=384)
    for kind, module, seed in (("language", LanguageModel, 0), ("scalar", ScalarModel, 1)):
        params = jax.jit(ModelDefinition(module, tiny.MODEL).initialise)(jax.random.key(seed))
        save_model(folder / kind, kind, tiny.MODEL, params, tokenizer)


ROUNDS = {"earlier": 0.25, "rivals": {"static": "static"}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with runs of the rounds and of the static control, whose two stages are the ones above."""
    pytest.importorskip("vaderSentiment", reason="vaderSentiment is not installed (gptjax[data])")
    folder = tmp_path_factory.mktemp("online")
    write_models(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(reward, "run", learn)
        patch.setattr(ppo, "run", align)
        online.run(config_of(static=True), folder / "static")
        online.run(config_of(**ROUNDS), folder / "online")
        yield folder


def test_a_round_asks_its_own_prompts_until_all_have_been_asked():
    prompts = [([], [n]) for n in range(10)]
    rounds = [[ids[0] for _, ids in islice(prompts_of_round(prompts, r, 3, 7), 9)] for r in (1, 2, 3)]
    assert len({n for asked in rounds for n in asked[:3]}) == 9
    assert set(Counter(n for asked in rounds for n in asked).values()) == {2, 3}
    again = [ids[0] for _, ids in islice(prompts_of_round(prompts, 2, 3, 7), 9)]
    assert again == rounds[1] != [ids[0] for _, ids in islice(prompts_of_round(prompts, 2, 3, 8), 9)]


def test_earlier_policies_share_what_the_latest_leaves():
    assert shares("first", [], 10, 0.5) == {"first": 10}
    assert shares("round-2", ["first", "round-1"], 10, 0.5) == {"round-2": 5, "round-1": 3, "first": 2}
    assert shares("round-1", ["first"], 10, 0.0) == {"round-1": 10}
    assert shares("round-2", ["first", "round-1"], 10, 0.1) == {"round-2": 9, "round-1": 1}


def test_replies_that_cannot_be_ranked_are_noticed():
    assert different(["a", "b"]) and not different(["a", " a"]) and not different(["a", " "])


def test_a_static_control_has_the_budget_of_all_rounds():
    config = config_of(rounds=5, prompts=7)
    one = schedule(dataclasses.replace(config, static=True))
    assert len(schedule(config)) == 5 and len(one) == 1
    for field in ("prompts", "iterations"):
        assert sum(getattr(r, field) for r in schedule(config)) == getattr(one[0], field)


def test_ppo_starts_from_the_policy_that_was_asked_for():
    policies, worth = ["first", "round-1", "round-2"], {"first": 0.5, "round-1": 0.75, "round-2": 0.25}
    starts = {
        start: [start_of(config_of(start=start), policies[: n + 1], worth) for n in range(3)]
        for start in ("first", "latest", "best", 1, 2)
    }
    assert starts == {
        "first": ["first"] * 3,
        "latest": policies,
        "best": ["first", "round-1", "round-1"],
        1: ["first", "round-1", "round-1"],
        2: policies,
    }
    assert override(config_of(), ["--start", "2"]).start == 2
    with pytest.raises(ConfigError, match="'start'"):
        override(config_of(), ["--start", "0"])


@pytest.mark.slow
def test_the_best_policy_is_the_one_whose_samples_the_labeler_likes_most(place):
    online.run(config_of(start="best", prompts=4), place / "best")
    rows = read_metrics(place / "best" / "metrics.jsonl")
    better = rows[1]["samples/gold"] > rows[0]["samples/gold"]
    config = json.loads((place / "best/round-2/ppo/config.json").read_text("utf-8"))
    assert config["policy"] == (str(place / "best/round-1/ppo") if better else "language")


@pytest.mark.slow
def test_both_arms_are_labelled_equally_often(place):
    arms = [read_done(place / arm) for arm in ("online", "static")]
    assert arms[0]["labels"] == arms[1]["labels"] == 16
    assert arms[0]["pairs"] == arms[1]["pairs"] == 16 * 3
    rankings = [
        read_preferences(place / folder / "rankings.jsonl") for folder in ("online/round-2", "static/round-1")
    ]
    assert [len(arm) for arm in rankings] == [16, 16]
    assert {len(ranked.completions) for arm in rankings for ranked in arm} == {3}


@pytest.mark.slow
def test_a_round_deploys_what_the_last_one_made_and_learns_from_all_rankings(place):
    run = place / "online"
    first, second = (read_preferences(run / f"round-{n}" / "labels.jsonl") for n in (1, 2))
    assert Counter(ranked.source for ranked in first) == {"first": 8}
    assert Counter(ranked.source for ranked in second) == {"round-1": 6, "first": 2}
    assert read_preferences(run / "round-2" / "rankings.jsonl") == [*first, *second]
    assert {ranked.source for ranked in read_preferences(place / "static/round-1/labels.jsonl")} == {"first"}
    configs = {
        stage: json.loads((run / "round-2" / stage / "config.json").read_text("utf-8"))
        for stage in ("reward", "ppo")
    }
    assert configs["reward"]["base"] == configs["ppo"]["policy"] == "language"
    assert configs["ppo"]["reward"] == str(run / "round-2" / "reward")
    seeds = [json.loads((run / f"round-{n}/ppo/config.json").read_text("utf-8"))["seed"] for n in (1, 2)]
    assert seeds[0] != seeds[1] and configs["reward"]["seed"] == seeds[1]


@pytest.mark.slow
def test_policies_meet_on_the_same_prompts(place):
    done = read_done(place / "online")
    names = ["first", "round-1", "round-2", "static"]
    for judge in ("gold", "lexicon"):
        assert list(done["heldout"][judge]) == names
        assert done["heldout"][judge]["first"]["elo"] == 0
        assert done["heldout"]["lead"][judge]["round-2"]["static"].keys() == {"elo", "low", "high"}
    rows = read_rows(place / "online" / "samples.jsonl")
    assert len(rows) == 8 and list(rows[0]) == ["prompt", *names]
    # The control replies in its own run as it does here, and earns the same.
    alone = read_rows(place / "static" / "samples.jsonl")
    assert [row["static"] for row in rows] == [row["round-1"] for row in alone]
    score = done["heldout"]["gold"]["static"]["score"]
    assert score == pytest.approx(
        read_done(place / "static")["heldout"]["gold"]["round-1"]["score"], abs=1e-5
    )
    mesh = make_mesh(MeshConfig())
    kept, last = (load_model(place / folder, mesh, "language") for folder in ("online", "online/round-2/ppo"))
    assert kept.digest == last.digest


@pytest.mark.slow
def test_every_round_has_a_line_of_figures(place):
    lines = read_metrics(place / "online" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    assert [line["labels/rankings"] for line in lines] == [8, 16]
    assert all(0 <= line["labels/contrary"] <= 1 for line in lines)


@pytest.mark.slow
def test_people_who_rank_as_the_labeler_leave_the_same_policy(place, capsys):
    people = LabelerConfig(kind="human", reward="scalar")
    config = config_of(**ROUNDS, labeler=people)
    for number in (1, 2):
        with pytest.raises(SystemExit) as left:
            online.run(config, place / "people")
        assert left.value.code == WAITING
        assert f"round-{number} waits for its labels" in capsys.readouterr().out
        ours, theirs = (place / run / f"round-{number}" for run in ("people", "online"))
        assert (ours / "samples.jsonl").read_bytes() == (theirs / "samples.jsonl").read_bytes()
        shutil.copy(theirs / "labels.jsonl", ours)
    online.run(config, place / "people")
    capsys.readouterr()
    mesh = make_mesh(MeshConfig())
    assert load_model(place / "people", mesh).digest == load_model(place / "online", mesh).digest
    assert read_done(place / "people")["heldout"] == read_done(place / "online")["heldout"]


@pytest.mark.slow
def test_labels_that_changed_under_a_round_are_refused(place):
    run = shutil.copytree(place / "online", place / "changed")
    (run / "done.json").unlink()
    labels = read_rows(run / "round-1" / "labels.jsonl")
    labels[0]["ranking"] = labels[0]["ranking"][::-1]
    (run / "round-1" / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels), "utf-8")
    with pytest.raises(ConfigError, match="the rankings have changed since .*round-1/rankings.jsonl"):
        online.run(config_of(**ROUNDS), run)


@pytest.mark.slow
def test_a_policy_that_repeats_itself_is_named(place):
    model = load_model("language", make_mesh(MeshConfig()), "language")
    config = config_of()
    cold = dataclasses.replace(config.ppo, sampling=SamplingConfig(temperature=1e-6, max_new_tokens=6))
    prompts = zip(count(), prompts_of_round([([], [5, 6, 7])], 1, 1, 0))
    with pytest.raises(
        DataError, match="first gave 3 different replies of use to 0 of 8 prompts, but 1 are to"
    ):
        draw_samples(model, "first", prompts, 1, jax.random.key(0), dataclasses.replace(config, ppo=cold))


@pytest.mark.slow
def test_rankings_from_before_join_the_first_round(place):
    rankings = online.earlier_rankings(config_of(rankings="preferences.jsonl"))
    assert len(rankings) == 40 and online.earlier_rankings(config_of()) == []
    few = dataclasses.replace(config_of().reward, groups=5, k_min=3, k_max=4)
    rated = online.earlier_rankings(config_of(rankings="ratings", reward=few))
    assert len(rated) == 5 and {len(ranked.completions) for ranked in rated} <= {3, 4}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"replies": 10}, "reward.k_max = 9 is below replies = 10"),
        ({"replies": 1}, "greater than or equal to 2"),
        (
            {"reward": RewardConfig(length=70, batch_size=4)},
            "reward.length = 70 must be above ppo.prompt_length",
        ),
        ({"reward": RewardConfig(length=128, batch_size=4, seed=1)}, "reward.seed has no effect in rounds"),
        ({"reward": RewardConfig(length=128, batch_size=4, source="x")}, "reward.source has no effect"),
        (
            {"labeler": LabelerConfig(kind="human"), "start": "best"},
            "start = 'best' needs labeler.reward",
        ),
        ({"labeler": LabelerConfig()}, "labeler.reward must name the reward model"),
        (
            {"reward": RewardConfig(length=128, batch_size=4, at_most=8)},
            "reward.at_most would leave the labels of later rounds out",
        ),
        (
            {"ppo": dataclasses.replace(PPO, conventions=Conventions(cut_at="."))},
            "ppo.conventions.cut_at is not known to rounds",
        ),
        ({"rivals": {"round-2": "x"}}, "rivals: 'round-2' is"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        config_of(**wrong)


@pytest.mark.slow
def test_a_rival_that_is_no_policy_is_refused_at_the_start(place):
    with pytest.raises(ConfigError, match="rivals: gold = scalar holds no finished policy"):
        online.run(config_of(rivals={"gold": "scalar"}), place / "refused")


@pytest.mark.slow
@pytest.mark.parametrize(
    "named", [{"ensemble": ("missing",)}, {"tracking": TrackingConfig(replies=True, gold="missing")}]
)
def test_a_judge_of_ppo_that_is_not_there_is_missed_before_a_label_is_asked_for(place, named):
    with pytest.raises(ConfigError, match="missing"):
        online.run(config_of(ppo=dataclasses.replace(PPO, **named)), place / f"without_{next(iter(named))}")
    assert not (place / f"without_{next(iter(named))}" / "round-1").exists()


@pytest.mark.slow
def test_a_run_killed_in_every_phase_of_a_round_ends_with_the_same_bits(tmp_path):
    pytest.importorskip("vaderSentiment", reason="vaderSentiment is not installed (gptjax[data])")
    from test_stages_resume import arrays

    write_models(tmp_path)
    stages = config_of()
    prompts = str(tmp_path / "dialogues.jsonl")
    config = config_of(
        earlier=0.25,
        start="latest",
        reward=dataclasses.replace(stages.reward, epochs=2, save_every=1),
        ppo=dataclasses.replace(stages.ppo, iterations=2, save_every=1, prompts=prompts),
        policy=str(tmp_path / "language"),
        labeler=LabelerConfig(reward=str(tmp_path / "scalar"), temperature=1.0, flip=0.1),
    )
    deaths = [
        ("drawing", 3),
        ("samples", 1),
        ("labels", 1),
        ("labels", 1),  # the labels are read now: it is the union that is written first
        ("saving", 1),  # of the reward model
        ("handover", 1),
        ("saving", 1),  # of PPO
        ("drawing", 3),  # of the second round
        ("labels", 2),
        ("handover", 2),
        ("meeting", 2),
        None,
    ]
    for name, moments in (("whole", [None]), ("killed", deaths)):
        for moment in moments:
            die = moment and (*moment, SIGKILL)
            process = stage_driver.start(to_json(config), tmp_path / name, tmp_path / "cache", die)
            process.join()
            log = (tmp_path / f"{name}.log").read_text("utf-8")
            assert process.exitcode == (-SIGKILL if die else 0), (moment, log[-3000:])
    runs = tmp_path / "whole", tmp_path / "killed"
    for part in ("model/params", "round-1/reward/model/params", "round-2/ppo/model/params"):
        one, other = (arrays(run / part) for run in runs)
        assert {k: v.tobytes() for k, v in one.items()} == {k: v.tobytes() for k, v in other.items()}
    for file in ("samples.jsonl", "round-1/labels.jsonl", "round-2/samples.jsonl", "round-2/rankings.jsonl"):
        assert (runs[0] / file).read_bytes() == (runs[1] / file).read_bytes()
    figures = [
        [line | {"time": 0, "elapsed": 0} for line in read_metrics(run / "metrics.jsonl")] for run in runs
    ]
    assert figures[0] == figures[1] and len(figures[0]) == 2
    assert read_done(runs[0])["heldout"] == read_done(runs[1])["heldout"]
