"""From a gold reward model to its curves: labels, a proxy, PPO measured along the way, the measurement."""

import dataclasses
import json
import re
from signal import SIGKILL

import gold_case
import jax
import numpy as np
import pytest
import stage_driver

from gptjax.config import ConfigError, load_experiment, to_json
from gptjax.data.preferences import read_preferences
from gptjax.evaluation import alignment, alignment_tax, gold_curves
from gptjax.evaluation.alignment_tax import AlignmentTaxConfig
from gptjax.evaluation.gold_curves import GoldCurvesConfig
from gptjax.evaluation.report import write_report
from gptjax.evaluation.tracked import read_track
from gptjax.generation.sampling import SamplingConfig
from gptjax.runs import read_done
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages import gold_labels, ppo, reward
from gptjax.stages.handover import load_model
from gptjax.stages.ppo_evaluation import DIVERGENCES, make_evaluation
from gptjax.stages.tracking import with_tests
from gptjax.training.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Sharding info not provided")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    pytest.importorskip("vaderSentiment", reason="vaderSentiment is not installed (gptjax[data])")
    folder = tmp_path_factory.mktemp("gold")
    gold_case.make_runs(folder)
    return folder


def model(root, name):
    return load_model(root / name, make_mesh(MeshConfig()))


def test_the_smaller_set_of_labels_begins_the_larger_and_a_seed_decides(root):
    files = {"labels": (root / "labels" / "preferences.jsonl").read_text("utf-8")}
    for name, changes in {"half": {"asked": 32}, "other": {"asked": 32, "seed": 1}}.items():
        gold_labels.run(gold_case.labels_config(root, **changes), root / name)
        files[name] = (root / name / "preferences.jsonl").read_text("utf-8")
    assert files["half"] and files["half"] not in (files["other"], files["labels"])
    assert files["labels"].startswith(files["half"])
    groups, done = read_preferences(root / "labels" / "preferences.jsonl"), read_done(root / "labels")
    assert len(groups) == done["prompts"] > 24
    assert sum(len(group.completions) for group in groups) == done["replies"] == 64 * 4 - done["left_out"]
    rows = [json.loads(line) for line in files["labels"].splitlines()]
    for row in rows:
        assert row["ranking"] == [1 + sum(other > gold for other in row["gold"]) for gold in row["gold"]]
    assert len({tuple(row["ranking"]) for row in rows}) > 2


def test_a_proxy_has_the_layers_and_the_rankings_it_was_given(root, capsys):
    proxy, base = model(root, "proxy"), model(root, "policy")
    assert proxy.definition.config.layers == 1 and base.definition.config.layers == 2
    config = dataclasses.replace(gold_case.proxy_config(root), layers=3)
    with pytest.raises(ConfigError, match=r"layers = 3, but .*policy has 2: lower it"):
        reward.run(config, root / "too_deep")
    assert "the first 12 of" in capsys.readouterr().out
    shape, trunk = reward.trunk_of(base, gold_case.proxy_config(root))
    whole = base.params["decoder"]["blocks"]
    assert shape.layers == 1
    jax.tree.map(lambda ours, theirs: np.testing.assert_array_equal(ours, theirs[:1]), trunk["blocks"], whole)


def test_tracked_rows_are_figures_of_the_policy_of_that_moment(root):
    config, track = gold_case.ppo_config(root), read_track(root / "ppo")
    assert [row.pop("step") for row in track.rows] == [2, 4, 5]
    judges = {"reward": model(root, "proxy"), "gold": model(root, "gold")}
    base, policy = model(root, "policy"), model(root, "ppo")
    evaluation = make_evaluation(config, base, judges, config.ptx_length, config.conventions)
    figures, _ = with_tests(evaluation, base, config.tracking).measure(policy.params)
    assert track.rows[-1] == pytest.approx(figures, abs=1e-6) and figures["kl"] > 1e-3
    done = read_done(root / "ppo")["heldout"]
    assert done["policy"] | {kind: done[kind] for kind in DIVERGENCES} == track.rows[-1]
    assert track.start == done["reference"] | dict.fromkeys(DIVERGENCES, 0.0)
    assert len({row["gold"] for row in track.rows}) == 3


def test_the_report_of_the_run_shows_what_moved_what_was_checked_and_what_was_said(root):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (gptjax[report])")
    write_report([root / "ppo"])
    text = (root / "ppo" / "report.md").read_text("utf-8")
    sections = {part.splitlines()[0]: part for part in text.split("\n## ")}
    done, rows = read_done(root / "ppo")["heldout"], read_metrics(root / "ppo" / "metrics.jsonl")
    for metric, about in alignment.WATCHED.items():
        values = [row[metric] for row in rows if metric in row]
        ends = " | ".join(f"{v:.4g}" for v in (values[0], values[-1], min(values), max(values)))
        assert f"| {about} | {ends} |" in sections["What moved: ppo"], metric
    shown = [f"| {about} | 0 | {done[name]:.4g} |" for name, about in alignment.DISTANCES.items()]
    for name in ("reward", "gold", "lexicon", "ended", "text_loss", "on_topic"):
        models = " | ".join(f"{done[model][name]:.4g}" for model in ("reference", "policy"))
        shown.append(f"| {alignment.HELD_OUT[name]} | {models} |")
    assert all(row in sections["On held-out prompts: ppo"] for row in shown)
    checked = re.findall(r"^\| (\d) \| ", sections["Self-check: ppo"], re.MULTILINE)
    assert checked == ["1", "3", "5"]
    assert "figures/score_against_length_ppo.svg" in sections["Score against length: ppo"]
    samples = [json.loads(line) for line in (root / "ppo" / "samples.jsonl").read_text("utf-8").splitlines()]
    scores = sorted(sample["policy_reward"] for sample in samples)
    for title, ranked in (("Best replies", scores[::-1]), ("Worst replies", scores)):
        found = re.findall(r"^\| (-?[\d.]+) \| \d+ \| ", sections[f"{title}: ppo"], re.MULTILINE)
        assert found == [f"{score:.3f}" for score in ranked[: alignment.SHOWN]]


def curves_config(root, **changes):
    labels = gold_case.labels_config(root)
    given = {
        name: getattr(labels, name) for name in ("policy", "gold", "prompts", "prompt_length", "sampling")
    }
    given |= {"asked": 8, "n": 8, "batch_size": 4, "draws": 50}
    given |= {"proxies": {"small": str(root / "proxy")}, "ppo": {"small": str(root / "ppo")}}
    return dataclasses.replace(load_experiment(gold_case.GAO / "curves.py"), **given | changes)


def test_the_measurement_leaves_figures_and_drawings(root, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (gptjax[report])")
    gold_curves.run(curves_config(root), root / "curves")
    found = read_done(root / "curves")["proxies"]["small"]
    best = found["best_of_n"]
    assert [point["n"] for point in best["points"]] == [1, 2, 4, 8]
    assert best["points"][0]["kl"] == 0.0 and best["points"][0]["gold"] == pytest.approx(0.0, abs=1e-12)
    proxies = [point["proxy"] for point in best["points"]]
    assert proxies[-1] > 0 and found["scale"] > 0
    curve, rows = found["ppo"], read_track(root / "ppo").rows
    assert [point["step"] for point in curve["points"]] == [0, 2, 4, 5]
    assert [point["kl"] for point in curve["points"]] == [0.0, *(max(row["kl"], 0.0) for row in rows)]
    assert curve["points"][0]["gold"] == curve["points"][0]["proxy"] == 0.0
    assert {"alpha", "beta", "intervals", "peak", "turns_within", "highest", "end"} <= set(curve)
    assert (root / "curves" / "gold_curves.svg").read_text("utf-8").startswith("<?xml")
    assert (root / "curves" / "gold_curves.png").stat().st_size > 1000
    assert "| small | " in capsys.readouterr().out
    gold_curves.run(curves_config(root), root / "curves")
    assert "already done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"proxies": {"small": "gold"}}, "has reward = .*proxy', but here it must be .*gold"),
        ({"gold": "proxy"}, "has tracking.gold = "),
        ({"sampling": SamplingConfig(max_new_tokens=7)}, "has sampling = .*: the replies must be alike"),
        ({"prompt_length": 63}, "has prompt_length = 64, but here it is 63"),
        ({"asked": 4000, "ppo": {}}, r"asked = 4000, but \d+ held-out prompts fit"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(root, wrong, sentence):
    def below(value):
        return str(root / value) if isinstance(value, str) else value

    changes = {
        name: {key: below(path) for key, path in value.items()} if isinstance(value, dict) else below(value)
        for name, value in wrong.items()
    }
    with pytest.raises(ConfigError, match=sentence):
        gold_curves.run(curves_config(root, **changes), root / f"refused_{next(iter(wrong))}")


def test_the_alignment_tax_is_read_off_the_rows_of_runs_that_differ_in_a_coefficient(root, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (gptjax[report])")
    folder = gold_case.GAO.parent / "alignment_tax"
    small = gold_case.small_ppo(root, load_experiment(folder / "ppo.py"), "gold")
    for name, ptx_coef in (("with", 0.5), ("without", 0.0)):
        ppo.run(dataclasses.replace(small, iterations=2, ptx_coef=ptx_coef), root / name)
    runs = {name: str(root / name) for name in ("with", "without")}
    alignment_tax.run(dataclasses.replace(load_experiment(folder / "compare.py"), ppo=runs), root / "tax")
    row, found = read_track(root / "with").rows[-1], read_done(root / "tax")["runs"]["with"]
    assert (found["kl_coef"], found["ptx_coef"], found["kl"]) == (small.kl_coef, 0.5, row["kl"])
    assert found["end"]["on_topic"] == row["on_topic"]
    rise = found["end"]["text_loss"] / found["start"]["text_loss"] - 1
    assert found["text_loss_rise"] == pytest.approx(rise)
    for name in ("along_the_way", "by_coefficient"):
        assert (root / "tax" / f"{name}.svg").read_text("utf-8").startswith("<?xml")
    assert "| before PPO | " in capsys.readouterr().out
    with pytest.raises(ConfigError, match="'with' and 'other' differ in reward"):
        mixed = AlignmentTaxConfig(ppo=runs | {"other": str(root / "ppo")})
        alignment_tax.run(mixed, root / "mixed")


def test_killed_labels_end_with_the_same_bytes(root):
    config, deaths = gold_case.labels_config(root), [("saving", 3, SIGKILL), None]
    for die in deaths:
        process = stage_driver.start(to_json(config), root / "killed", root / "cache", die)
        process.join()
        log = (root / "killed.log").read_text("utf-8")
        assert process.exitcode == (-SIGKILL if die else 0), log[-3000:]
    assert "resumed at step" in log
    ours, theirs = ((root / name / "preferences.jsonl").read_bytes() for name in ("killed", "labels"))
    assert ours == theirs


def test_settings_of_the_measurement_that_cannot_be_meant_are_refused():
    with pytest.raises(ValueError, match="'b', which is no proxy"):
        GoldCurvesConfig(proxies={"a": "x"}, ppo={"b": "y"})
    with pytest.raises(ValueError, match="a proxy is called 'gold'"):
        GoldCurvesConfig(proxies={"gold": "x"})
    with pytest.raises(ValueError, match="needs 4 replies"):
        GoldCurvesConfig(proxies={"a": "x"}, n=2)
