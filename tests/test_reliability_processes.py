"""Faults of one of several processes: the others notice, and all end with the bits of an undisturbed run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from signal import SIGABRT, SIGKILL, SIGTERM

import pytest
import several_processes
from test_launch import write_script
from test_reliability import write_experiment

from gptjax.errors import RESUBMIT
from gptjax.launching.outcome import exit_code, outcome

pytestmark = [pytest.mark.slow, pytest.mark.fault(name="processes")]
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(folder for programs, digests of the undisturbed run of two processes)."""
    root = tmp_path_factory.mktemp("processes")
    group = several_processes.Group(root / "whole", root / "cache")
    assert group.exit_codes() == [0, 0], group.log()
    digests = [json.loads((root / "whole" / f"digests-{index}.json").read_text()) for index in (0, 1)]
    assert digests[0] == digests[1]
    return root / "cache", digests[0]


def saved(folder):
    return max(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def assert_same_digests(folder, digests):
    for index in (0, 1):
        assert json.loads((folder / f"digests-{index}.json").read_text()) == digests


def assert_killed(group, victim):
    """The victim is gone; the other has lost it and left in a way after which a launcher starts all again."""
    codes = group.exit_codes()
    assert codes[victim] == -SIGKILL, group.log()
    # JAX itself aborts a process that has lost the coordinator; else a collective fails first.
    assert all(code in (RESUBMIT, -SIGABRT) for code in codes[:victim] + codes[victim + 1 :]), group.log()
    assert outcome(map(exit_code, codes)) == RESUBMIT


def test_notice_to_one_of_two_processes_saves_the_same_step_on_both(undisturbed, tmp_path):
    cache, digests = undisturbed
    folder = tmp_path / "run"
    group = several_processes.Group(folder, cache)
    group.wait_for_step(5)
    group.signal(1, SIGTERM)
    assert group.exit_codes() == [RESUBMIT, RESUBMIT], group.log()
    assert group.log().count(f"saved at step {saved(folder)} after SIGTERM") == 2, group.log()
    group = several_processes.Group(folder, cache)
    assert group.exit_codes() == [0, 0], group.log()
    assert_same_digests(folder, digests)


def test_a_second_notice_to_one_of_two_processes_ends_it_at_once(undisturbed, tmp_path):
    """Before the service has picked the step that all would save, which it does once a second."""
    cache, _ = undisturbed
    group = several_processes.Group(tmp_path / "run", cache)
    group.wait_for_step(5)
    for _ in range(3):  # two that come before Python looks are one
        if group.processes[1].is_alive():
            group.signal(1, SIGTERM)
            group.processes[1].join(0.3)
    assert outcome(map(exit_code, group.exit_codes())) == RESUBMIT
    assert group.processes[1].exitcode == RESUBMIT and "after SIGTERM" not in group.log()


def test_two_processes_survive_kills_and_a_hang(undisturbed, tmp_path):
    """One run, started four times: the worker is killed, then the coordinator, then one hangs."""
    cache, digests = undisturbed
    folder = tmp_path / "run"
    for victim in (1, 0):
        group = several_processes.Group(folder, cache)
        group.wait_for_step((saved(folder) if victim == 0 else 0) + 10)
        group.signal(victim, SIGKILL)
        assert_killed(group, victim)
    group = several_processes.Group(folder, cache, hang_at=saved(folder) + 8)
    assert group.exit_codes() == [RESUBMIT, RESUBMIT], group.log()
    stacks = [(folder / f"stacks-{index}.txt").read_text() for index in (0, 1)]
    assert "in batch_at" in stacks[1] and "in run_loop" in stacks[0]
    group = several_processes.Group(folder, cache)
    assert group.exit_codes() == [0, 0], group.log()
    assert_same_digests(folder, digests)


def test_kills_during_saves_and_other_numbers_of_processes(undisturbed, tmp_path):
    """The worker dies in a save of two; then one process alone; then of two again the coordinator."""
    cache, digests = undisturbed
    folder = tmp_path / "run"
    starts = (2, 1, "saving", 2), (1, 0, "before sealing", 2), (2, 0, "sealing", 2)
    for count, victim, moment, times in starts:
        group = several_processes.Group(folder, cache, count, die=(victim, moment, times))
        assert_killed(group, victim)
        assert list((folder / "checkpoints").glob("*.orbax-checkpoint-tmp*")), "it died while it saved"
    group = several_processes.Group(folder, cache)
    assert group.exit_codes() == [0, 0], group.log()
    assert_same_digests(folder, digests)


def test_one_process_goes_on_where_two_were_stopped(undisturbed, tmp_path):
    """The same four devices in one process: the same batches and, on this machine, the same bits."""
    cache, digests = undisturbed
    group = several_processes.Group(tmp_path / "run", cache)
    group.wait_for_step(5)
    group.signal(0, SIGTERM)
    assert group.exit_codes() == [RESUBMIT, RESUBMIT], group.log()
    group = several_processes.Group(tmp_path / "run", cache, count=1)
    assert group.exit_codes() == [0], group.log()
    assert json.loads((tmp_path / "run" / "digests-0.json").read_text()) == digests


@pytest.fixture
def checkout(tmp_path):
    """launch.sh beside an environment that is this one."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "gptjax", folder / "gptjax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("launch.sh", "setup.cfg"):
        shutil.copy(ROOT / name, folder)
    write_script(folder / ".venv/bin/python", f'[[ "$*" == *pip* ]] || exec {sys.executable} "$@"')
    write_script(folder / ".venv/bin/gptjax", f'exec {sys.executable} -m gptjax.cli "$@"')
    return folder


def test_the_launcher_starts_a_run_again_that_has_lost_a_worker(checkout, tmp_path):
    """`./launch.sh local`: the second of two processes is killed in a save, and nobody does anything."""
    file = write_experiment(tmp_path, steps=9, save_every=3, mesh={"data": 2})
    dies = (
        "\nimport os, signal\nfrom pathlib import Path\n\nimport stage_driver\n\n"
        f"died = Path({str(tmp_path / 'died')!r})\n"
        "if os.environ['JAX_PROCESS_ID'] == '1' and not died.exists():\n"
        "    died.touch()\n"
        "    stage_driver.arrange('saving', 2, signal.SIGKILL)\n"
    )
    fatal = tmp_path / "fatal.py"
    fatal.write_text(file.read_text("utf-8") + dies, "utf-8")
    figures = []
    for name, experiment in {"whole": file, "lost": fatal}.items():
        words = ["local", "--name", name, "--processes", "2", "--devices", "1", "--", "gptjax", "train"]
        words += [str(experiment), "--runs", str(tmp_path), "--name", name]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
        ran = subprocess.run(
            [checkout / "launch.sh", *words], env=environment, capture_output=True, text=True, timeout=400
        )
        assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
        again = re.findall(r"is started again, attempt (\d)", ran.stdout)
        assert again == ["2"] * (name == "lost"), ran.stdout
        figures.append(json.loads((tmp_path / name / "model/model.json").read_text("utf-8"))["digest"])
    assert "resumed at step" in ran.stdout and figures[0] == figures[1]
