"""Sweeps: what is planned, and running it here or under SLURM."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from gptjax import cli
from gptjax.config import ConfigError, load_experiment, to_json
from gptjax.launching.environments import MEMORY
from gptjax.overrides import override
from gptjax.sweeps.board import Board, last_line
from gptjax.sweeps.local import core_shares, run_cells
from gptjax.sweeps.plan import SweepConfig, load_sweep, plan
from gptjax.sweeps.slurm import array_script, chains

TESTS, ROOT = Path(__file__).parent, Path(__file__).parents[1]
EXPERIMENT = "from fake_cell import CellConfig as config\n"
# Two arms on a base of their own seed, as BERT's; the last is written first, and must wait.
ARMS = {
    "tuned": "--base {runs}/base-{seed} --rate 1",
    "frozen": "--base {runs}/base-{seed}",
    "base": "",
}
# Stands for `gptjax` where it is only about which cell begins when, on what, and how it ends.
STUB = """
import json, os, signal, sys, time
from pathlib import Path
words = dict(zip(sys.argv[3::2], sys.argv[4::2]))
folder = Path("runs", words["--name"])
folder.mkdir(parents=True, exist_ok=True)
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), os._exit(75)))
with open("begun.txt", "a") as file:
    print(words["--name"], file=file)
if "--base" in words and not Path(words["--base"], "done.json").exists():
    sys.exit("the base is not there")
if words.get("--end") == "badly":
    sys.exit("out of luck")
while words.get("--end") == "late":
    time.sleep(0.05)
cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
seen = {"cores": cores, "threads": os.environ["OMP_NUM_THREADS"], "memory": os.environ["GLIBC_TUNABLES"]}
(folder / "done.json").write_text(json.dumps(seen))
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with `experiments/cell.py` and the stub."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/cell.py").write_text(EXPERIMENT)
    (tmp_path / "stub.py").write_text(STUB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def cells_of(arms=ARMS, seeds=(0, 1), **settings):
    config = SweepConfig(arms=arms, seeds=seeds, experiment="experiments/cell.py", **settings)
    return plan(config, "sweep.py")


def run(cells, jobs=2, **settings):
    return run_cells(cells, jobs, command=(sys.executable, "stub.py"), **settings)


def begun():
    return Path("begun.txt").read_text().split()


def test_cells_come_after_what_they_build_on(workplace):
    cells = cells_of()
    assert [cell.name for cell in cells] == ["base-0", "tuned-0", "frozen-0", "base-1", "tuned-1", "frozen-1"]
    assert [sorted(cell.needs) for cell in cells[:3]] == [[], ["base-0"], ["base-0"]]
    tuned = cells[4]
    assert (tuned.config.base, tuned.config.rate, tuned.config.seed) == ("runs/base-1", 1.0, 1)
    words = ["train", "experiments/cell.py", "--name", "tuned-1", "--seed", "1", "--base", "runs/base-1"]
    assert tuned.words == [*words, "--rate", "1"]


def test_a_base_is_found_below_its_folder_and_in_lists(workplace):
    Path("experiments/measure.py").write_text("from fake_cell import MeasureConfig as config\n")
    models = "runs/base-{seed}/model,elsewhere/base-{seed},runs/base-{seed}0"
    cells = cells_of({"base": "", "all": f"experiments/measure.py --models {models}"}, seeds=(3,))
    assert cells[1].needs == {"base-3"}
    assert "--seed" not in cells[1].words, "a measurement without a seed is given none"


def test_a_folder_of_runs_may_be_moved_and_named_in_other_words(workplace):
    arms = {"base": "", "tuned": "--base {runs}/base-{seed}/model"}
    for cell in cells_of(arms, seeds=(0,)):
        cell.folder.mkdir(parents=True)
        (cell.folder / "config.json").write_text(json.dumps(to_json(cell.config)))
    Path("runs").rename("moved")
    sweep = SweepConfig(arms=arms, seeds=(0,), experiment="experiments/cell.py")
    with pytest.raises(ConfigError, match="base was 'runs/base-0/model', is 'moved/base-0/model'"):
        plan(sweep, "sweep.py", Path("moved"))  # a run that is not finished goes on under the old names
    (workplace / "moved/tuned-0/done.json").write_text("{}")
    for named in (Path("moved"), workplace / "moved"):
        assert [cell.folder for cell in plan(sweep, "sweep.py", named)] == [
            named / "base-0",
            named / "tuned-0",
        ]
    other = SweepConfig(
        arms=arms | {"tuned": "--base {runs}/base-1/model"}, seeds=(0,), experiment=sweep.experiment
    )
    with pytest.raises(ConfigError, match="base was 'runs/base-0/model', is 'moved/base-1/model'"):
        plan(other, "sweep.py", Path("moved"))


@pytest.mark.parametrize("paper", sorted(path.parent.name for path in ROOT.glob("experiments/*/sweep.py")))
def test_the_sweeps_of_the_papers_are_the_loops_of_their_pages(paper, monkeypatch):
    """bash runs the loop with `gptjax` as a function that prints its words."""
    monkeypatch.chdir(ROOT)
    page = (ROOT / "experiments" / paper / "README.md").read_text("utf-8")
    loops = re.finditer(r"^( *)for seed in.*?^\1done$", page, re.DOTALL | re.MULTILINE)
    loop = "\n".join(loop[0] for loop in loops)
    stub = 'gptjax() { printf "%q " "$@"; echo; }\n'
    lines = subprocess.run(["bash", "-ec", stub + loop], capture_output=True, text=True, check=True).stdout
    typed = {}
    try:
        for line in lines.splitlines():
            _, file, *words = shlex.split(line)
            at = words.index("--name")
            typed[words[at + 1]] = override(load_experiment(file), words[:at] + words[at + 2 :], file)
        cells = plan(load_sweep(f"experiments/{paper}/sweep.py"), paper, Path("runs"))
    except ConfigError as error:
        if "GPTJAX_DATA" in str(error):
            pytest.skip(str(error))
        if "holds a run with another configuration" in str(error):
            pytest.skip("runs/ holds older runs")
        raise
    assert {cell.name: cell.config for cell in cells} == typed and len(cells) >= 3


def test_a_finished_run_is_skipped_and_a_changed_one_refused(workplace):
    assert run(cells_of()) == 0
    assert sorted(begun()) == sorted(cell.name for cell in cells_of())
    assert run(cells_of(seeds=(0, 1, 2))) == 0
    assert begun()[6:] in ([["base-2", *two] for two in (["tuned-2", "frozen-2"], ["frozen-2", "tuned-2"])])
    Path("runs/tuned-0/config.json").write_text(json.dumps(to_json(cells_of()[1].config)))
    assert len(cells_of()) == 6
    with pytest.raises(ConfigError) as error:
        cells_of(ARMS | {"tuned": "--base runs/base-{seed} --rate 2"})
    for part in ("runs/tuned-0 holds", "rate was 1.0, is 2.0", "rename the arm 'tuned'", "elsewhere"):
        assert part in str(error.value)


def test_what_fails_is_named_and_the_others_go_on(workplace, capsys):
    cells = cells_of(ARMS | {"base": "--end badly", "alone": ""}, seeds=(0,))
    assert run(cells) == 1
    shown = capsys.readouterr().out
    assert "failed: base-0 (exit code 1), see runs/base-0.log: out of luck" in shown
    assert "not begun: tuned-0, which builds on base-0" in shown and "1 of 4 runs are finished" in shown
    assert sorted(begun()) == ["alone-0", "base-0"]
    assert Path("runs/alone-0/done.json").exists()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system pins no process to cores")
def test_a_cell_has_its_own_cores_and_as_many_threads(workplace, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert run(cells_of({"base": ""}, seeds=(0, 1)), jobs=2) == 0
    done = [json.loads(Path(f"runs/base-{seed}/done.json").read_text()) for seed in (0, 1)]
    assert [found["cores"] for found in done] == core_shares(2)
    assert [found["threads"] for found in done] == [str(len(share)) for share in core_shares(2)]


@pytest.mark.parametrize(
    "given, seen",
    [({}, MEMORY["GLIBC_TUNABLES"]), ({"GLIBC_TUNABLES": ""}, ""), ({"GLIBC_TUNABLES": "own"}, "own")],
)
def test_a_cell_keeps_its_buffers_unless_told_otherwise(workplace, monkeypatch, given, seen):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert run(cells_of({"base": ""}, seeds=(0,))) == 0
    assert json.loads(Path("runs/base-0/done.json").read_text())["memory"] == seen


def test_cores_are_shared_without_a_rest(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 6, 8, 9}, raising=False)
    assert core_shares(1) == [[4, 5, 6, 8, 9]]
    assert core_shares(2) == [[4, 5], [6, 8, 9]]
    assert len(core_shares(7)) == 7 and {len(share) for share in core_shares(7)} == {1}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_is_passed_on_and_the_same_command_resumes(workplace, capsys, name):
    cells = cells_of({"a": "--end late", "b": ""}, seeds=(0, 1))

    def stop_when_two_have_begun():
        while not Path("begun.txt").exists() or "a-0" not in begun():
            time.sleep(0.05)
        os.kill(os.getpid(), getattr(signal, name))

    before = signal.getsignal(signal.SIGTERM)
    watcher = threading.Thread(target=stop_when_two_have_begun)
    watcher.start()
    assert run(cells, jobs=1) == 75
    watcher.join()
    assert signal.getsignal(signal.SIGTERM) is before
    shown = capsys.readouterr().out
    assert "told to stop: 1 runs" in shown and "stopped: a-0" in shown and "not begun: b-1\n" in shown
    assert last_line(Path("runs/a-0.log")) == "saved" and begun() == ["a-0"]
    easy = [replace(cell, overrides=()) for cell in cells]
    assert run(easy) == 0 and sorted(begun()) == ["a-0", "a-0", "a-1", "b-0", "b-1"]


def test_running_cells_are_shown_by_their_last_line(workplace, capsys):
    cells, seconds = cells_of(seeds=(0,)), iter([0.0, 10.0, 31.0, 31.0, 40.0])
    Path("runs").mkdir()
    cells[0].log.write_bytes(b"base 1/9\n" + b"base 7/9  loss 0.1\n\n")
    board = Board(sys.stdout, 30.0, lambda: next(seconds))
    board.show(cells[:1])
    assert capsys.readouterr().out == ""
    board.show(cells[:1])
    assert capsys.readouterr().out == "  base-0: base 7/9  loss 0.1\n"
    board.show(cells[:1])
    assert capsys.readouterr().out == ""


def test_an_array_has_a_task_for_every_chain(workplace):
    """The script is run by bash, task by task, with an `srun` that notes its words."""
    cells = cells_of(ARMS | {"alone": ""})
    assert run(cells[:1]) == 0  # base-0
    script = array_script(cells, "mine", Path("runs"), 3, "--partition=gpu")
    assert "#SBATCH --array=0-4%3\n" in script and "#SBATCH --partition=gpu\n" in script
    names = [[cell.name for cell in chain] for chain in chains(cells)]
    assert names == [
        ["base-0", "tuned-0", "frozen-0"],
        ["alone-0"],
        ["base-1", "tuned-1", "frozen-1"],
        ["alone-1"],
    ]
    Path("srun").write_text('#!/bin/bash\necho "${@:5}" >> calls.txt\nexit ${ENDS:-0}\n')
    Path("scontrol").write_text('#!/bin/bash\necho "$@" >> requeued.txt\n')
    for name in ("srun", "scontrol"):
        Path(name).chmod(0o755)
    Path("array.sh").write_text(script)

    def task(number, **environment):
        environment |= {
            "PATH": f".:{os.environ['PATH']}",
            "SLURM_ARRAY_TASK_ID": str(number),
            "SLURM_JOB_ID": "7",
        }
        return subprocess.run(["bash", "array.sh"], env=environment).returncode

    assert [task(number) for number in range(5)] == [0] * 5
    called = [line.split("--name ")[1].split()[0] for line in Path("calls.txt").read_text().splitlines()]
    assert called == ["tuned-0", "frozen-0", "alone-0", "base-1", "tuned-1", "frozen-1", "alone-1"]
    assert (
        "train experiments/cell.py --name tuned-1 --seed 1 --base runs/base-1"
        in Path("calls.txt").read_text()
    )
    Path("calls.txt").unlink()
    assert task(3, ENDS="70") == 70 and len(Path("calls.txt").read_text().splitlines()) == 3
    Path("calls.txt").unlink()
    assert task(3, ENDS="75") == 75 and len(Path("calls.txt").read_text().splitlines()) == 1
    assert Path("requeued.txt").read_text() == "requeue 7\n"


def write_sweep(text):
    Path("experiments/sweep.py").write_text(
        f"from gptjax.sweeps.plan import SweepConfig\n\n\ndef sweep():\n    return SweepConfig({text})\n"
    )


def test_the_command_prints_submits_and_runs(workplace, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{TESTS}{os.pathsep}{ROOT}")
    write_sweep("arms={'a': '', 'b': '--rate 2.5'}, experiment='experiments/cell.py', seeds=(4,)")
    sweep = ["sweep", "experiments/sweep.py"]
    commands = "gptjax train experiments/cell.py --name {}-4 --seed 4{}\n"
    both = commands.format("a", "") + commands.format("b", " --rate 2.5")
    for words in (["--backend", "print"], ["--dry-run"]):
        assert cli.main([*sweep, *words]) == 0
        assert capsys.readouterr().out == both
    assert cli.main([*sweep, "--backend", "slurm", "--dry-run"]) == 0
    assert "#SBATCH --array=0-1%1" in capsys.readouterr().out and not Path("runs").exists()
    (workplace / "bin").mkdir()
    (workplace / "bin/sbatch").write_text('#!/bin/bash\necho "given $1" > given.txt\n')
    (workplace / "bin/sbatch").chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{workplace}/bin:{os.environ['PATH']}")
        assert cli.main([*sweep, "--backend", "slurm"]) == 0
    assert Path("given.txt").read_text() == "given runs/sweep.sbatch\n" and Path("runs/sweep.sbatch").exists()
    assert cli.main([*sweep, "--jobs", "2"]) == 0
    assert json.loads(Path("runs/b-4/done.json").read_text()) == {"heldout": {"loss": 6.5}}
    capsys.readouterr()
    assert cli.main(sweep) == 0
    assert capsys.readouterr().out == "all 2 runs are finished\n"
    assert cli.main(["compare", "experiments/sweep.py", "--metric", "heldout.loss"]) == 0
    assert "| b | 1 | 6.5000 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words", "sentence"),
    [
        ("arms={}", [], "must not be empty"),
        ("arms={'a': ''}", [], "arm 'a' has no experiment: begin its line with a file"),
        ("arms={'a': 'experiments/cel.py'}", [], "the nearest is experiments/cell.py"),
        ("arms={'a': 'experiments/cell.py --rat 1'}", [], "arm 'a': the nearest valid key is 'rate'"),
        ("arms={'a': 'experiments/cell.py --seed 3'}", [], "the same run for every seed"),
        ("arms={'a': 'experiments/cell.py'}, seeds=(1, 1)", [], "names a seed twice"),
        ("arms={'a': 'experiments/cell.py'}, baseline='b'", [], "baseline = 'b' is no arm"),
        (
            "arms={x: f'experiments/cell.py --base runs/{y}-{{seed}}' for x, y in ('ab', 'ba')}, seeds=(0,)",
            [],
            "in a circle: a-0, b-0",
        ),
        ("arms={'a': 'experiments/cell.py'}", ["--jobs", "0"], "--jobs must be at least 1"),
        ("arms={'a': 'experiments/cell.py'}", ["--slurm=--time=1"], "belongs to --backend slurm"),
        ("arms={'a': 'experiments/cell.py'}", ["--backend", "slurm"], "there is no sbatch here"),
    ],
)
def test_an_error_is_one_sentence(workplace, capsys, monkeypatch, text, words, sentence):
    write_sweep(text)
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["sweep", "experiments/sweep.py", *words]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1 and sentence in shown, shown


def test_a_file_without_a_sweep_is_refused(workplace, capsys):
    assert cli.main(["sweep", "experiments/cell.py"]) == 2
    assert "has no function sweep()" in capsys.readouterr().err
    Path("experiments/odd.py").write_text("from fake_cell import CellConfig as sweep\n")
    assert cli.main(["sweep", "experiments/odd.py"]) == 2
    assert "must return a SweepConfig, but returned CellConfig" in capsys.readouterr().err
