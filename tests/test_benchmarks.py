"""The benchmarks' arithmetic by hand, their processes, and one quick run of each script."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel

ROOT = Path(__file__).parent.parent
SCRIPTS = ("train_step", "decode", "ppo", "startup", "import_memory", "quantization", "saving")
# Of each script, what a quick run needs to prove that it works.
QUICK = {
    "train_step": ["--compute-dtype", "float32", "--loop", "unroll"],
    "decode": ["--batch", "2"],
    "ppo": [],
    "startup": [],
    "import_memory": [],
    "quantization": ["--source", "pydoc", "--bytes", "2000"],
    "saving": [],
}


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    """The benchmarks are scripts: their folder is on the path only while one runs."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def harness(on_path):
    return importlib.import_module("harness")


@pytest.fixture
def results(on_path):
    return importlib.import_module("results")


def burst(harness, name, seconds, others, cpu_seconds=1.0, units=10):
    return harness.Burst(name, units, seconds, cpu_seconds, others, peak_mib=seconds)


def process(pid, name, parent, utime, stime, cutime=0, cstime=0):
    """A line of /proc/PID/stat, see proc(5)."""
    before = [parent, 1, 1, 0, -1, 0, 9, 9, 9, 9]
    return f"{pid} ({name}) S {' '.join(map(str, [*before, utime, stime, cutime, cstime, 20, 0, 1]))}"


def test_machine_ticks(harness):
    stat = "cpu  100 20 30 400 50 6 7 8 90 10\ncpu0 1 2 3 4 5 6 7 8 9 10\n"
    # Guests (90 and 10) are part of user and nice already.
    assert harness.machine_ticks(stat) == (171, 621)


def test_tree_ticks_counts_descendants_and_their_reaped_children(harness):
    stats = [
        process(1, "init", 0, 1000, 1000),
        process(10, "python", 1, 5, 2, cutime=40, cstime=3),
        process(11, "a worker) S 1", 10, 100, 20),
        process(12, "deep (", 11, 7, 0),
        process(13, "other", 1, 999, 999),
        process(14, "kthread", 2, 1, 1),
    ]
    assert harness.tree_ticks(stats, 10) == 5 + 2 + 40 + 3 + 100 + 20 + 7


def test_others_share(harness):
    assert harness.others_share((100, 1000, 50), (180, 1200, 114)) == pytest.approx(16 / 200)
    # The counters of the machine and of processes are rounded differently.
    assert harness.others_share((0, 0, 0), (10, 20, 11)) == 0
    assert harness.others_share((5, 5, 5), (5, 5, 5)) == 0


def test_read_ticks_counts_a_child_that_has_ended(harness):
    before = harness.read_ticks()
    burn = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    after = harness.read_ticks()
    second = os.sysconf("SC_CLK_TCK")
    assert after[2] - before[2] >= 0.4 * second
    assert after[0] - before[0] >= 0.4 * second and after[1] - before[1] >= after[0] - before[0]


def test_a_burst_is_kept_up_to_the_limit(harness):
    assert burst(harness, "a", 1, 0.08).kept and not burst(harness, "a", 1, 0.0801).kept


def test_medians_leave_dropped_bursts_out(harness, results):
    bursts = [burst(harness, "a", wall, others) for wall, others in ((2, 0), (90, 0.5), (4, 0.01), (3, 0.08))]
    figures = results.summarise(bursts)["a"]
    assert (figures.kept, figures.dropped) == (3, 1)
    assert (figures.seconds_per_unit, figures.fastest, figures.slowest) == (0.3, 0.2, 0.4)
    assert figures.peak_mib == 90


def test_ratio_is_of_wall_time_or_of_cpu_time(harness, results):
    bursts = [burst(harness, "peer", 6, 0, cpu_seconds=9), burst(harness, "ours", 4, 0, cpu_seconds=3)] * 3
    figures = results.summarise(bursts)
    assert results.is_quiet(figures.values())
    assert results.ratio(figures["peer"], figures["ours"], quiet=True) == pytest.approx(1.5)
    assert results.ratio(figures["peer"], figures["ours"], quiet=False) == pytest.approx(3)


def test_too_few_quiet_bursts_are_said_to_be_too_few(harness, results):
    quiet = [burst(harness, "peer", 6, 0)] * 3
    busy = [burst(harness, "ours", 4, 0)] * 2 + [burst(harness, "ours", 4, 0.2)] * 5
    figures = results.summarise(quiet + busy)
    assert not results.is_quiet(figures.values())
    said = results.verdict(figures, quick=False)
    assert said.startswith("indicative: the machine was busy") and "peer 3 of 3, ours 2 of 7" in said
    assert results.verdict(results.summarise(quiet), quick=False).startswith("Medians")
    assert results.verdict(results.summarise(quiet), quick=True).startswith("quick")


def test_rounds_alternate_until_each_has_enough(harness):
    others = {"a": iter([0, 0.5, 0, 0]), "b": iter([0, 0, 0, 0])}
    turns = [lambda name=name: burst(harness, name, 1, next(others[name])) for name in others]
    bursts = harness.interleave(turns, wanted=2, limit=60)
    assert [one.name for one in bursts] == ["a", "b"] * 3


def test_one_round_runs_even_without_time(harness):
    turn = iter([burst(harness, "a", 1, 0.9)])
    assert len(harness.interleave([lambda: next(turn)], wanted=3, limit=0)) == 1


def test_bars(results):
    assert results.bar("speed", 0.8, 0.75, at_least=True)["met"] is True
    assert results.bar("seconds", 8.1, 8.0, at_least=False)["met"] is False
    assert results.bar("speed", None, 0.75, at_least=True)["met"] is None


def test_programs_that_disagree_are_not_compared(results):
    facts = {"torch float32": {"losses": [9.0, 8.0]}, "gptjax bfloat16": {"losses": [9.0, 8.005]}}
    results.check_agreement(facts, "losses", {"float32": 1e-3, "bfloat16": 1e-2})
    facts["gptjax float32"] = facts.pop("gptjax bfloat16")
    with pytest.raises(SystemExit, match="losses of gptjax float32 and torch float32 differ by 0.005"):
        results.check_agreement(facts, "losses", {"float32": 1e-3, "bfloat16": 1e-2})
    facts["gptjax float32"]["losses"][1] = float("nan")
    with pytest.raises(SystemExit, match="nan"):
        results.check_agreement(facts, "losses", {"float32": 1e-3, "bfloat16": 1e-2})


def build_sum(count):
    return lambda: sum(range(count)) and count, {"process": os.getpid()}


def build_broken():
    raise ValueError("no such model")


def build_fatal():
    os._exit(3)


def test_a_worker_is_another_process_that_stays(harness):
    worker = harness.Worker("sum", build_sum, 10_000, threads=1)
    bursts = [worker.burst(), worker.burst()]
    worker.close()
    assert worker.facts["process"] != os.getpid()
    assert all(one.units == 10_000 and 0 < one.seconds < 60 and one.peak_mib > 1 for one in bursts)
    assert all(0 <= one.others <= 1 for one in bursts)


@pytest.mark.parametrize(
    ("build", "said"), [(build_broken, "no such model"), (build_fatal, "worker ended with exit code 3")]
)
def test_a_worker_that_fails_says_why(harness, build, said):
    with pytest.raises(RuntimeError, match=said):
        harness.Worker("worker", build)


def test_gptjax_takes_the_weights(on_path):

    weights = importlib.import_module("gpt2_weights")
    shape = weights.Shape(layers=2, width=8, heads=2, vocab_size=11, positions=5)
    definition = ModelDefinition(LanguageModel, weights.gptjax_config(shape))
    params = weights.gptjax_params(weights.random_weights(shape), shape.layers)
    described = jax.tree.map(lambda x: (x.shape, str(x.dtype)), params)
    assert described == jax.tree.map(lambda x: (x.shape, str(x.dtype)), definition.abstract)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_quick_run(script, tmp_path):
    command = [
        sys.executable,
        f"benchmarks/{script}.py",
        "--quick",
        "--results",
        str(tmp_path),
        *QUICK[script],
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    (page,) = tmp_path.glob("*.md")
    assert re.fullmatch(rf"{script}-\d{{4}}-\d\d-\d\d\.md", page.name)
    assert page.read_text("utf-8") in ran.stdout
    result = json.loads(page.with_suffix(".json").read_text("utf-8"))
    assert result["status"].startswith("quick") and "Bars" not in result["tables"]
    assert result["machine"]["cores"] >= 1 and result["packages"]["jax"] and result["commit"]
    rows = {next(iter(row.values())): row for row in result["tables"]["Figures"]}
    assert rows.keys() == {one["name"] for one in result["bursts"]}
    if script == "startup":
        assert rows["first start"]["programs found"] == 0 < rows["second start"]["programs found"]
        return
    if script == "import_memory":
        assert rows.keys() == {"reading", "whole import"}
        assert all(row["model MB"] > row["largest tensor MB"] > 0 for row in rows.values())
        return
    if script == "quantization":
        assert list(rows) == ["float32", "int8", "int4", "int8, groups of 16", "int4, groups of 16"]
        sizes = [float(row["linear maps MB"]) for row in rows.values()]
        assert sizes[0] >= sizes[1] >= sizes[2] and all(float(row["perplexity"]) > 1 for row in rows.values())
        return
    if script == "saving":
        tiny_state = rows["tiny"]
        assert 0 < tiny_state["save call s"] <= tiny_state["on the disk after s"]
        return
    ours = next(row for name, row in rows.items() if name.startswith("gptjax float32"))
    if script == "ppo":
        parts = [ours[f"{phase} s"] for phase in ("rollout", "scoring", "updates")]
        assert min(parts) > 0 and sum(parts) == pytest.approx(ours["s/iteration"], rel=0.05)
        return
    assert ours["tokens/s"] > 0 and ours["compile s"] > 0
    for peer in ("torch", "transformers")[: 1 + (script == "decode")]:
        pytest.importorskip(peer, reason=f"{peer} is not installed: there is no ratio to it (gptjax[parity])")
    (speed,) = (value for name, value in ours.items() if name.startswith("speed"))
    assert speed > 0 and len(rows) == 2


def test_scripts_named_by_the_page_are_there_with_their_options():
    page = (ROOT / "docs/performance.md").read_text("utf-8")
    commands = re.findall(r"`python benchmarks/(\w+)\.py([^`]*)`", page)
    assert {name for name, _ in commands} == set(SCRIPTS)
    for name, options in commands:
        parser = importlib.import_module(name).options()
        parser.parse_args(options.split())


def test_a_page_shows_figures_and_verdicts(results):
    rows = [{"what": "a", "tokens/s": 12345.6, "ratio": 0.7512, "met": True, "MFU": None}]
    result = {
        "benchmark": "x",
        "date": "2026-01-02",
        "commit": "c0ffee",
        "status": "Medians.",
        "note": "Why.",
    }
    result |= {
        "machine": {"cpu": "C", "cores": 2, "memory_gib": 8.0},
        "packages": {"jax": "1"},
        "settings": {},
    }
    lines = results.markdown(result | {"tables": {"Figures": rows}}).splitlines()
    assert lines[0] == "# x, 2026-01-02" and lines[-1] == "Why."
    assert "- machine: C, 2 cores, 8.0 GiB" in lines and "Medians." in lines
    assert lines[lines.index("## Figures") + 2 :][:3] == [
        "| what | tokens/s | ratio | met | MFU |",
        "| --- | --- | --- | --- | --- |",
        "| a | 12,346 | 0.751 | met | - |",
    ]
