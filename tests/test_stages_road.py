"""The end of the road: figures on both sides of their bars, samples side by side, and a whole tiny road."""

import dataclasses
import json

import pytest
import tiny

from experiments.quickstart import config as quickstart
from gptjax.data.quality import BadRows
from gptjax.evaluation.judge import chat_questions
from gptjax.runs import mark_done, read_done
from gptjax.stages import road
from gptjax.stages.dialogue_rows import read_source
from gptjax.stages.reward_data import read_groups


def verdicts(figures) -> dict[str, tuple[str, bool | None]]:
    return {figure["name"]: (figure["bar"], figure["met"]) for figure in figures}


def pretrained(bits, **compressors):
    return {"bits_per_byte": bits} | compressors


def test_pretraining_must_beat_both_compressors_on_two_sources():
    rows = road.pretraining_figures(
        {
            "shakespeare": pretrained(2.249, xz=2.375, bz2=2.25),
            "ratings": pretrained(2.25, xz=2.25, bz2=2.5),  # as good is not below
            "pydoc": pretrained(9.0, xz=1.75, bz2=1.75),
            "my_texts": pretrained(9.0),
        }
    )
    assert verdicts(rows) == {
        "pretrain: bits per byte, shakespeare": ("< 2.250", True),
        "pretrain: bits per byte, ratings": ("< 2.250", False),
        "pretrain: bits per byte, pydoc": ("", None),
        "pretrain: bits per byte, my_texts": ("", None),
    }
    assert [row["value"] for row in rows] == [2.249, 2.25, 9.0, 9.0]
    assert rows[0]["detail"] == "xz 2.375, bz2 2.250" and rows[3]["detail"] == ""
    (alone,) = road.pretraining_figures({"ratings": pretrained(1.0)})
    assert (alone["bar"], alone["met"]) == ("", None), "without a compressor there is no bar"


def rewarded(accuracy=0.76, ece=0.08, **more):
    figures = {"accuracy_clear": accuracy, "ece": ece, "ece_raw": 0.25, "accuracy": 0.7}
    return figures | {"longer_wins_clear": 0.5, "reliability": [{"confidence": 0.6}]} | more


@pytest.mark.parametrize(
    ("accuracy", "ece", "met"), [(0.76, 0.08, (True, True)), (0.7599, 0.0801, (False, False))]
)
def test_the_reward_model_is_judged_on_clear_pairs_and_by_its_calibration(accuracy, ece, met):
    clear, calibration = road.reward_figures(rewarded(accuracy, ece, bag_of_words_clear=0.8))
    assert (clear["value"], calibration["value"]) == (accuracy, ece)
    assert (clear["bar"], calibration["bar"]) == (">= 0.76", "<= 0.08")
    assert (clear["met"], calibration["met"]) == met
    assert clear["detail"] == "longer wins 0.500, linear bag of words 0.800; all pairs 0.700"
    assert calibration["detail"] == "0.250 raw"
    assert "bag of words" not in road.reward_figures(rewarded())[0]["detail"]


def aligned(lexicon=0.3, distinct=0.4, text_loss=4.19):
    before = {"lexicon": 0.0, "distinct_2": 0.8, "text_loss": 4.0}
    after = {"lexicon": lexicon, "distinct_2": distinct, "text_loss": text_loss}
    return {"reference": before, "policy": after, "kl": 12.5}


@pytest.mark.parametrize(
    ("after", "met"),
    [(aligned(), (True, True, True)), (aligned(0.299, 0.39, 4.21), (False, False, False))],
)
def test_ppo_is_judged_by_what_it_won_and_what_it_cost(after, met):
    rows = road.ppo_figures(after, aligned(text_loss=8.0))
    gain, variety, loss, *plain = rows
    assert [row["met"] for row in rows[:3]] == list(met)
    assert [row["bar"] for row in rows] == [">= 0.30", ">= 0.50", "<= 0.05", ">= 0.30", ">= 0.50", ""]
    assert [row["name"].split(":")[0] for row in rows] == ["PPO-ptx"] * 3 + ["PPO"] * 3
    policy = after["policy"]
    assert gain["value"] == policy["lexicon"] and variety["value"] == policy["distinct_2"] / 0.8
    assert loss["value"] == pytest.approx(policy["text_loss"] / 4 - 1)
    assert gain["detail"] == f"+0.000 -> {policy['lexicon']:+.3f}, KL 12.5 nats per reply"
    # Without the pretraining gradient the loss is reported, whatever it is.
    assert (plain[2]["value"], plain[2]["met"]) == (1.0, None)


def test_ppo_without_text_and_a_silent_reference_have_figures_all_the_same():
    silent = {"lexicon": 0.0, "distinct_2": 0.0}
    rows = road.ppo_figures(*[{"reference": silent, "policy": silent, "kl": 0.0}] * 2)
    assert [row["met"] for row in rows] == [False] * 4
    assert [row["value"] for row in rows] == [0.0] * 4


@pytest.mark.parametrize(("right", "met"), [(30, True), (29, False)])
def test_three_fifths_of_the_questions_must_be_answered_on_topic(right, met):
    row = road.chat_figure([{"on_topic": i < right} for i in range(50)])
    assert (row["value"], row["bar"], row["met"]) == (right, ">= 30", met)
    assert row["detail"] == "of 50 reworded questions"


def test_reward_against_kl_has_a_point_an_iteration(tmp_path):
    rows = [
        {"step": 1, "objective/kl": 0.0, "objective/raw_scores": -0.5, "objective/scores": -1.0},
        {"step": 1, "goodput": 0.9},
        {"step": 2, "objective/kl": 3.0, "objective/raw_scores": 0.75, "objective/scores": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    points = road.reward_against_kl(tmp_path / "metrics.jsonl")
    assert points == [{"kl": 0.0, "score": -0.5}, {"kl": 3.0, "score": 0.75}]


class Told:
    """A chat model that answers with a name, the question and what it was given to draw with."""

    def __init__(self, name):
        self.name = name

    def replies(self, dialogues, sampling, seeds):
        told = zip(dialogues, seeds, strict=True)
        return [f" {self.name} {seed} {sampling.temperature}: {d[-1]['content']} Python." for d, seed in told]

    def prompt_length(self, messages):
        return 33 if "review" in messages[-1]["content"] else 32


def training_questions(config: road.RoadConfig) -> set[str]:
    """What a user says anywhere in the data that the stages after pretraining learn from."""
    sources = {*config.finetune.dialogues, config.ppo.prompts, *config.ppo.dialogues}
    dialogues = [
        messages for source in sources for messages, _ in read_source(source, "train", BadRows(), config.seed)
    ]
    ranked = dataclasses.replace(config.reward, seed=config.seed)
    dialogues += [group.prompt for group in read_groups(ranked)[0]]
    return {m["content"] for messages in dialogues for m in messages if m["role"] == "user"}


def test_no_prompt_that_is_shown_side_by_side_is_one_of_training():
    config = quickstart()
    models = {name: Told(name) for name in ("pretrain", "finetune", "ppo")}
    samples = road.side_by_side(config, models)
    prompts = [sample["prompt"] for sample in samples]
    asked = training_questions(config)
    assert len(set(prompts)) == 7 and not asked.intersection(prompts)
    assert "Write a tweet." in asked
    assert ["that begins with" in prompt for prompt in prompts] == [False] * 4 + [True] * 3
    assert samples[2]["finetune"] == f"finetune 2 1.0: {prompts[2]} Python.", "stripped, its own seed"
    assert config.ppo.prompt_length == 32 and not any("review" in prompt for prompt in prompts)


def test_the_judgement_reads_every_stage_from_its_own_folder(tmp_path, monkeypatch):
    config = quickstart()
    heldout = {
        "pretrain": {"ratings": pretrained(2.0, xz=2.5)},
        "finetune": {},
        "reward": rewarded(),
        "ppo": aligned(0.5),
        "ppo_without_ptx": aligned(0.25),
    }
    for name, figures in heldout.items():
        (tmp_path / name).mkdir()
        mark_done(tmp_path / name, {"heldout": figures})
    row = {"step": 1, "objective/kl": 2.0, "objective/raw_scores": 0.5}
    (tmp_path / "ppo" / "metrics.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    monkeypatch.setattr(road, "load_chat", lambda config, folder: Told(folder.name))
    found = road.judge(config, tmp_path)
    values = {figure["name"]: figure["value"] for figure in found["figures"]}
    assert values["pretrain: bits per byte, ratings"] == 2.0
    assert values["PPO-ptx: gain in lexicon score"] == 0.5 and values["PPO: gain in lexicon score"] == 0.25
    assert found["reward_vs_kl"] == [{"kl": 2.0, "score": 0.5}]
    assert found["reliability"] == rewarded()["reliability"]
    # The aligned model is asked, and drawn from as the configuration says.
    first = chat_questions()[0]["question"]
    assert found["transcripts"][0]["reply"] == f" ppo 0 0.0: {first} Python."
    assert list(found["samples"][0]) == ["prompt", "pretrain", "finetune", "ppo"]
    right = sum(entry["on_topic"] for entry in found["transcripts"])
    assert values["chat: answers on topic"] == right and 0 < right < 50


@pytest.mark.slow
def test_a_whole_road_leaves_a_report_with_every_section(tmp_path, capsys):
    config, folder = tiny.config(tiny.write_data(tmp_path / "data")), tmp_path / "road"
    config = dataclasses.replace(
        config,
        pretrain=dataclasses.replace(config.pretrain, steps=4),
        finetune=dataclasses.replace(config.finetune, steps=4),
        reward=dataclasses.replace(config.reward, epochs=1),
        ppo=dataclasses.replace(config.ppo, iterations=2),
        chat_sampling=dataclasses.replace(config.chat_sampling, max_new_tokens=8),
    )
    road.run(config, folder)
    said = capsys.readouterr().out
    page, text = ((folder / f"report.{kind}").read_text("utf-8") for kind in ("html", "md"))
    for title in (
        "What was run on what",
        "Results",
        *(f"Curves: {stage}" for stage in ("pretrain", "finetune", "reward", "ppo")),
        "Is the reward model's confidence right?",
        "Reward against distance from the reference",
        "The same held-out prompts after each stage",
        "Questions in new wording",
        "What it cost",
    ):
        assert f"<h2>{title.replace(chr(39), '&#x27;')}</h2>" in page and f"## {title}\n" in text, title
    results = json.loads((folder / "results.json").read_text("utf-8"))
    assert len(results["reward_vs_kl"]) == config.ppo.iterations and len(results["transcripts"]) == 50
    assert {len(sample) for sample in results["samples"]} == {4}
    shown = text.split("## Questions in new wording\n")[1].split("\n## ")[0]
    assert sum(line.startswith("| ") for line in shown.splitlines()) == 2 + 10, "head, rule and rows"
    for figure in results["figures"]:
        assert figure["name"] in said
    # What it cost, of each stage and of all.
    costs = {name: read_done(folder / name) for name in road.stage_configs(config, folder)}
    for name, cost in (costs | {"in all": read_done(folder)}).items():
        assert cost["seconds"] > 0 and cost["tokens"] > 0
        shown = name.replace("_", r"\_")
        assert f"\n| {shown} | {cost['seconds']:,.1f} | {cost['tokens']:,.0f} | " in text
    assert read_done(folder)["tokens"] == sum(cost["tokens"] for cost in costs.values())
    for what in ("chat", "report"):
        assert f" {what} {folder}" in said.split("next:")[1]
