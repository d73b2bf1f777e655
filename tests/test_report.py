"""The report: what it shows, that it loads nothing from elsewhere and that no text can break it."""

import html.parser
import json
import re

import pytest

from gptjax.config import ConfigError, configclass
from gptjax.evaluation.charts import curves
from gptjax.evaluation.figure_rows import verdict
from gptjax.evaluation.report import result_table, write_report
from gptjax.evaluation.results import read_run
from gptjax.runs import mark_done, open_run, write_json_atomic
from gptjax.training.events import EventLog
from gptjax.training.goodput import CAUSES, TRAINING
from gptjax.training.metrics import MetricsWriter

EVIL = "<script>alert('x')</script> | *stars*\nsecond [line](http://evil)"
RESULTS = {
    "figures": [
        {"name": "bits per byte", "value": 2.21456, "bar": "< 2.34", "met": True, "detail": "xz 2.38"},
        {"name": "accuracy", "value": 0.75, "bar": ">= 0.76", "met": False, "detail": ""},
        {"name": "third source", "value": 1.5, "bar": "", "met": None, "detail": "reported"},
    ],
    "samples": [{"prompt": "Write a tweet.", "pretrain": EVIL, "finetune": "plain", "ppo": "glad"}],
    "transcripts": [
        {"question": f"question {i}?", "reply": "reply", "keywords": ["a", "b"], "on_topic": i < 30}
        for i in range(50)
    ],
    "reliability": [
        {"confidence": 0.55, "accuracy": 0.5, "count": 40},
        {"confidence": 0.95, "accuracy": 0.0, "count": 0},
    ],
    "reward_vs_kl": [{"kl": -0.001, "score": 0.0}, {"kl": 4.0, "score": 1.0}],
}


@configclass
class RoadSettings:
    seed: int = 0


def make_road(folder, seed=0, accuracy=0.75):
    open_run(folder, RoadSettings(seed=seed))
    for stage, names in {
        "pretrain": ["loss", "heldout_loss/shakespeare", "heldout_loss/ratings"],
        "ppo": ["objective/kl", "loss/value_avg"],
        "ppo_without_ptx": ["objective/kl", "loss/value_avg"],
    }.items():
        writer = MetricsWriter(open_run(folder / stage, RoadSettings(seed=seed)))
        for step in range(3):
            writer.write(
                step, {name: float(step) for name in names} | {"odd": float("nan"), "skipped": 0.0}, stage
            )
        writer.close()
        if stage != "ppo_without_ptx":
            mark_done(folder / stage, {"seconds": 10.0, "tokens": 5000})
    judged = {"value": accuracy, "met": accuracy >= 0.76}
    figures = [f | (judged if f["name"] == "accuracy" else {}) for f in RESULTS["figures"]]
    write_json_atomic(folder / "results.json", RESULTS | {"figures": figures})
    return folder


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    folder = make_road(tmp_path_factory.mktemp("runs") / "quickstart")
    assert write_report([folder]) == folder / "report.html"
    return folder


class Page(html.parser.HTMLParser):
    """Collects tags, links and the cells of tables."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.cells, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        if tag in self.open:
            del self.open[len(self.open) - 1 - self.open[::-1].index(tag) :]

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_the_page_holds_every_section(road):
    text = (road / "report.html").read_text("utf-8")
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == [
        "What was run on what",
        "Results",
        "Curves: pretrain",
        "Curves: ppo",
        "Is the reward model&#x27;s confidence right?",
        "Reward against distance from the reference",
        "The same held-out prompts after each stage",
        "Questions in new wording",
        "What it cost",
        "Where the files are",
    ]
    cells = Page(text).cells
    for value in ("cpu", "2.215", "met", "missed", "not finished", "10,000", "500", "question 45?"):
        assert value in cells, value
    assert "30 of 50 replies are on topic" in text
    assert sum(cell.startswith("question ") for cell in cells) == 10


def test_the_page_loads_nothing_from_elsewhere_and_escapes_what_models_say(road):
    text = (road / "report.html").read_text("utf-8")
    page = Page(text)
    assert EVIL in page.cells, "the text must be shown as it is"
    assert "script" not in page.tags
    assert len(page.links) == 4 and all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    assert "url(" not in text and "@import" not in text


def test_markdown_shows_the_same_and_cannot_be_broken(road):
    text = (road / "report.md").read_text("utf-8")
    assert "<script" not in text and r"\[line\]" in text
    (row,) = [line for line in text.splitlines() if "Write a tweet." in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 5, "four columns"
    for figure in re.findall(r"\]\((figures/\w+\.svg)\)", text):
        assert (road / figure).read_text().startswith("<?xml")
    assert "| bits per byte | 2.215 | < 2.34" not in text, "a bare < would open a tag"


def test_several_runs_stand_side_by_side(tmp_path):
    runs = [make_road(tmp_path / f"seed{i}", i, accuracy) for i, accuracy in enumerate((0.75, 0.79))]
    write_report(runs)
    cells = Page((runs[0] / "report.html").read_text("utf-8")).cells
    at = cells.index("accuracy")
    shown = ["accuracy", "0.75", "0.79", "0.77 ± 0.028", ">= 0.76", "met, but missed by seed0"]
    assert cells[at : at + 6] == shown
    assert not (runs[1] / "report.html").exists()


@pytest.mark.parametrize(
    ("bar", "judged", "said"),
    [
        (">= 0.76", {0.75: False, 0.76: True, 0.77: True}, "met, but missed by run0"),
        (">= 0.76", {0.74: False, 0.76: True, 0.77: True}, "missed"),
        ("<= 0.05", {0.06: False, 0.06001: False, -0.02: True}, "met, but missed by run0, run1"),
        ("< 2.5", {2.5: False, 2.25: True, 2.75: False}, "missed"),  # the mean is the bar, and not below it
        (">= 0.76", {0.76: True, 0.9: True}, "met"),
        # All miss the bar itself, which is shown rounded.
        ("< 2.416", {2.4159: False, 2.4158: False}, "missed"),
        ("", {1.5: None, 1.25: None}, ""),
    ],
)
def test_the_verdict_is_that_of_the_mean_and_names_who_misses(bar, judged, said):
    figures = [{"value": value, "bar": bar, "met": met} for value, met in judged.items()]
    assert verdict([(f"run{i}", figure) for i, figure in enumerate(figures)]) == said


def test_variants_share_the_panels_of_their_stage(road):
    drawing = (road / "figures" / "curves_ppo.svg").read_text()
    assert not (road / "figures" / "curves_ppo_without_ptx.svg").exists()
    for label in ("ppo", "ppo_without_ptx", "objective/kl", "loss/value_avg"):
        assert f"<!-- {label} -->" in drawing
    pretrain = (road / "figures" / "curves_pretrain.svg").read_text()
    assert "<!-- heldout_loss -->" in pretrain and "<!-- ratings -->" in pretrain
    assert "<!-- skipped -->" not in pretrain
    assert "The same wherever it was logged: skipped = 0." in (road / "report.html").read_text()
    assert "<!-- odd -->" not in pretrain, "a metric without a finite value has no curve"


def test_the_same_numbers_give_the_same_drawing():
    panels = {"loss": {"": [(1, 2.0), (2, 1.0)]}}
    assert curves(panels) == curves(panels)
    assert curves(panels) != curves({"loss": {"": [(1, 2.0), (2, 1.5)]}})


def test_the_table_for_the_terminal():
    assert result_table(RESULTS).splitlines() == [
        "figure         value  bar      verdict  detail",
        "-------------  -----  -------  -------  --------",
        "bits per byte  2.215  < 2.34   met      xz 2.38",
        "accuracy        0.75  >= 0.76  missed",
        "third source     1.5                    reported",
    ]


def test_a_single_stage_has_a_report_of_what_it_has(tmp_path):
    make_road(tmp_path / "road")
    stage = tmp_path / "road" / "pretrain"
    write_report([stage])
    text = (stage / "report.html").read_text("utf-8")
    assert "<h2>Curves: pretrain</h2>" in text and "<h2>Results</h2>" not in text
    assert list(read_run(stage).metrics) == ["pretrain"]


def test_the_page_says_where_the_time_went(tmp_path):
    """Of the last save: 60 of 100 seconds were steps that were kept, over two starts."""
    stage = make_road(tmp_path / "road") / "ppo"
    seconds = dict.fromkeys((TRAINING, *CAUSES), 0.0) | {TRAINING: 60.0, "redone": 25.5, "down": 14.5}
    log = EventLog(stage)
    for goodput in (0.9, 0.6):
        log.add("start", stage="ppo", step=0, began=0.0, config="")
        log.add("saved", stage="ppo", step=2, goodput=goodput, seconds=seconds)
    write_report([tmp_path / "road"])
    text = (tmp_path / "road" / "report.html").read_text("utf-8")
    section = text.split("<h2>Where the time went</h2>")[1].split("<h2>")[0]
    cells = Page(section).cells
    head = ["stage", "goodput", "starts", *CAUSES]
    assert cells[: len(head)] == head
    row = dict(zip(head, cells[len(head) :], strict=True))
    lost = dict.fromkeys(CAUSES, "0.0") | {"redone": "25.5", "down": "14.5"}
    assert row == {"stage": "ppo", "goodput": "60.0 %", "starts": "2"} | lost
    assert all((f"{cause}: {CAUSES[cause]}" in section) == (cause in ("redone", "down")) for cause in CAUSES)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no run in"):
        write_report([tmp_path])


def test_a_reward_run_shows_its_bins_and_where_it_is_right(tmp_path):
    folder = open_run(tmp_path / "reward", RoadSettings())
    writer = MetricsWriter(folder)
    writer.write(1, {"loss": 0.7}, "reward")
    writer.close()
    by = {
        "source": [{"value": EVIL, "accuracy": 0.625, "pairs": 8}],
        "gap": [{"from": 0.5, "to": 1.25, "accuracy": 0.75, "pairs": 4}],
    }
    heldout = {"accuracy_by": by, "reliability": RESULTS["reliability"]}
    mark_done(folder, {"seconds": 1.0, "tokens": 10, "heldout": heldout})
    text = write_report([folder]).read_text("utf-8")
    assert "confidence right?" in text and "Where is the reward model right?" in text
    cells = Page(text).cells
    assert cells[cells.index(EVIL) - 1 : cells.index(EVIL) + 3] == ["source", EVIL, "0.625", "8"]
    assert cells[cells.index("gap") : cells.index("gap") + 4] == ["gap", "0.5 to 1.25", "0.75", "4"]


ALIGNED = {
    "objective/scores": 1.0,
    "objective/kl": 0.5,
    "objective/kl_k2": 0.25,
    "objective/kl_k3": 0.26,
    "policy/clipfrac_avg": 0.125,
    "critic/vf_explained_var": -0.5,
    "policy/entropy_avg": 3.0,
    "val/response_length": 12.0,
    "val/eos_rate": 0.75,
    "digest/rollout": 4e9,
}


def aligned(tmp_path, **checks):
    folder = open_run(tmp_path / "ppo", RoadSettings())
    writer = MetricsWriter(folder)
    for step in (1, 2, 3):
        first = {"objective/kl_exact": 0.375} | checks if step == 1 else {}
        first["val/beyond_limit"] = float(step == 2)
        writer.write(step, {name: value * step for name, value in ALIGNED.items()} | first, "ppo")
    writer.close()
    said = {i: EVIL if i == 5 else f"reply {i}" for i in range(10)}
    rows = [
        {"prompt": f"prompt {i}", "reference": "r", "reference_tokens": 3, "reference_reward": 0.5}
        | {"policy": said[i], "policy_tokens": 10 - i, "policy_reward": float((i - 5) ** 2) - i / 100}
        for i in range(10)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    figures = {"reference": {"reward": 0.5, "ended": 0.25}, "policy": {"reward": 1.75, "ended": 1.0}}
    figures |= {"kl": 3.0, "kl_k2": 4.5, "kl_k3": 3.25, "kl_exact": 2.875}
    mark_done(folder, {"seconds": 1.0, "tokens": 10, "heldout": figures})
    return write_report([folder]).read_text("utf-8")


def test_a_run_of_ppo_shows_what_moved_and_its_best_and_worst_replies(tmp_path):
    text = aligned(tmp_path, **{"self_check/sampler_gap": 1e-6, "self_check/batch_gap": 0.0})
    assert "1 of 3 rollouts were farther from the reference than kl_limit" in text
    cells = Page(text).cells
    for about, values in {
        "reward, mean over replies": ["1", "3", "1", "3"],
        "KL to the reference, k1, nats per reply": ["0.5", "1.5", "0.5", "1.5"],
        "KL, k2": ["0.25", "0.75", "0.25", "0.75"],
        "KL, k3": ["0.26", "0.78", "0.26", "0.78"],
        "KL, exact, on the self-check&#x27;s replies".replace("&#x27;", "'"): ["0.375"] * 4,
        "clip fraction of the policy": ["0.125", "0.375", "0.125", "0.375"],
        "explained variance of the critic": ["-0.5", "-1.5", "-1.5", "-0.5"],
        "entropy, nats per token": ["3", "9", "3", "9"],
        "length, tokens": ["12", "36", "12", "36"],
        "share of replies that end": ["0.75", "2.25", "0.75", "2.25"],
    }.items():
        at = cells.index(about)
        assert cells[at + 1 : at + 5] == values, about
    shown = text.split("<h2>On held-out prompts: ppo</h2>")[1].split("<h2>")[0]
    rows = [Page(row).cells for row in shown.split("<tr>")[1:]]
    assert rows[1:] == [
        ["reward", "0.5", "1.75"],
        ["share of replies that end", "0.25", "1"],
        ["KL to the reference, k1, nats per reply", "0", "3"],
        ["KL, k2", "0", "4.5"],
        ["KL, k3", "0", "3.25"],
        ["KL, exact, over the whole vocabulary", "0", "2.875"],
    ]
    at = cells.index("iteration")
    assert cells[at : at + 6] == ["iteration", "sampler gap", "batch gap", "1", "1e-06", "0"]
    best, worst = (
        text.split(f"<h2>{title}: ppo</h2>")[1].split("<h2>")[0]
        for title in ("Best replies", "Worst replies")
    )
    assert [f"reply {i}" in best for i in range(10)] == [i in (0, 1, 2, 9) for i in range(10)]
    assert "alert(&#x27;x&#x27;)" in worst and best.index("reply 0") < best.index("reply 9")
    assert "correlation, reference: none, all are alike; correlation, policy: 0.37" in text
    assert (tmp_path / "ppo/figures/score_against_length_ppo.svg").exists()
    assert "digest" not in text


def test_an_unchecked_run_says_so(tmp_path):
    text = aligned(tmp_path, **{"self_check/off": 1.0})
    assert "The self-check was off: no identity was checked." in text
