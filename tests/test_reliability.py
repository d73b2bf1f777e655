"""Faults of machines, made on purpose: whatever happens, the run ends with the bits of an undisturbed one."""

import json
import os
import random
import subprocess
from pathlib import Path
from signal import SIGABRT, SIGKILL, SIGTERM

import jax
import jax.numpy as jnp
import pytest
import several_processes
import stage_driver
import tiny
from test_stages_resume import arrays, assert_same_run
from test_training_checkpoint import assert_same_bits

from gptjax.config import to_json
from gptjax.errors import RESUBMIT
from gptjax.stages.road import stage_configs
from gptjax.training import checkpoint
from gptjax.training.checkpoint import Checkpoints, SaveFailed
from gptjax.training.events import read_events

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Sharding info not provided")]
KILLS = 10


def test_ten_kills_end_with_the_bits_of_an_undisturbed_run(tmp_path):
    """At named moments and at any; each start may be killed before it has saved anything."""
    config = stage_configs(tiny.config(tiny.write_data(tmp_path / "data")), tmp_path)["pretrain"][1]
    config = to_json(config) | {"steps": 48, "save_every": 3, "eval_every": 24}
    rng = random.Random(5)

    def run(name, expect, die=None, seconds=None):
        process = stage_driver.start(config, tmp_path / name, tmp_path / "cache", die)
        process.join(seconds)
        process.kill()
        process.join()
        log = Path(f"{tmp_path / name}.log").read_text("utf-8")[-3000:]
        assert process.exitcode in (expect, 0 if seconds else expect), log
        return process.exitcode

    run("whole", 0)
    kills = 0
    while kills < KILLS:
        moment = rng.choice(["metrics", "saving", "before saving", "sealing", "before sealing", "anywhere"])
        if moment == "anywhere":
            code = run("chaos", -SIGKILL, seconds=rng.uniform(0.5, 4.0))
        else:
            code = run("chaos", -SIGKILL, die=(moment, rng.randint(1, 5), SIGKILL))
        assert code == -SIGKILL, "it finished before it was killed ten times: give it more steps"
        kills += 1
    run("chaos", 0)
    assert_same_run(tmp_path / "whole", tmp_path / "chaos")
    starts = [event for event in read_events(tmp_path / "chaos") if event["event"] == "start"]
    last = [event for event in read_events(tmp_path / "chaos") if event["event"] == "saved"][-1]
    print(f"{kills} kills, starts at {[event['step'] for event in starts]}, goodput {last['goodput']}")


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


def test_two_processes_survive_kills_and_a_hang(undisturbed, tmp_path):
    """One run, started four times: the worker is killed, then the coordinator, then one hangs."""
    cache, digests = undisturbed
    folder = tmp_path / "run"
    for victim in (1, 0):
        group = several_processes.Group(folder, cache)
        group.wait_for_step((saved(folder) if victim == 0 else 0) + 10)
        group.signal(victim, SIGKILL)
        codes = group.exit_codes()
        # JAX itself aborts a process that has lost the coordinator; else a collective fails first.
        assert codes[victim] == -SIGKILL and codes[1 - victim] in (RESUBMIT, -SIGABRT, 1), group.log()
    group = several_processes.Group(folder, cache, hang_at=saved(folder) + 8)
    assert group.exit_codes() == [RESUBMIT, RESUBMIT], group.log()
    stacks = [(folder / f"stacks-{index}.txt").read_text() for index in (0, 1)]
    assert "in batch_at" in stacks[1] and "in run_loop" in stacks[0]
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
def small_disk(tmp_path):
    """A file system of 40 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("looked_for", [True, False])
def test_a_disk_that_is_full_stops_the_run_and_keeps_what_is_there(small_disk, monkeypatch, looked_for):
    """With the look at the free space, and without it, when the write itself fails."""
    if not looked_for:
        monkeypatch.setattr(checkpoint, "_SPARE", 0.0)
    state = {"w": jax.random.normal(jax.random.key(0), (1 << 21,)), "step": jnp.int32(1)}  # 8 MiB
    writer = Checkpoints(small_disk / "saves", {}, keep=2)
    writer.save(1, state)
    assert writer.settle()
    (small_disk / "others").write_bytes(os.urandom(28 << 20))
    with pytest.raises(SaveFailed, match=r"make room there .*; step 1 is intact"):
        for step in (2, 3):
            writer.save(step, state)
            writer.settle()
    writer.close()
    (small_disk / "others").unlink()
    writer = Checkpoints(small_disk / "saves", {}, keep=2)
    assert_same_bits(writer.restore_latest(state), state)
    writer.save(4, state)
    assert writer.settle() and writer.steps() == [1, 4]
    writer.close()
    assert arrays(small_disk / "saves" / "4").keys() == arrays(small_disk / "saves" / "1").keys()
