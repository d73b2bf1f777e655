"""Faults of machines, made on purpose: whatever happens, the run ends with the bits of an undisturbed one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from signal import SIGKILL, SIGTERM

import jax
import jax.numpy as jnp
import pytest
import stage_driver
import tiny
from test_stages_resume import CACHE, arrays, assert_same_run
from test_training_checkpoint import assert_same_bits

from gptjax import cli
from gptjax.config import to_json
from gptjax.errors import DISK, RESUBMIT
from gptjax.stages.road import stage_configs
from gptjax.stages.verify import verify
from gptjax.training import checkpoint
from gptjax.training.checkpoint import Checkpoints, SaveFailed
from gptjax.training.digest import leaf_digests
from gptjax.training.events import SETTINGS_CHANGED, read_events
from gptjax.training.integrity import read_facts
from gptjax.training.metrics import MetricsWriter, read_metrics
from gptjax.training.stopping import StopSignal

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Sharding info not provided")]
KILLS, STEPS = 10, 96
EXPERIMENT = """
import json

from gptjax.config import from_json


def config():
    return from_json(json.loads({!r}))
"""


def write_experiment(root: Path, **changes) -> Path:
    """An experiment file with the pretraining of the tiny road."""
    config = stage_configs(tiny.config(tiny.write_data(root / "data")), root)["pretrain"][1]
    file = root / "tiny_pretrain.py"
    file.write_text(EXPERIMENT.format(json.dumps(to_json(config) | changes)), "utf-8")
    return file


class Pretraining:
    """`gptjax train` of a tiny pretraining, in processes that can be killed, and its undisturbed run."""

    def __init__(self, root: Path):
        self.root, self.file = root, write_experiment(root, steps=STEPS, save_every=3, eval_every=STEPS // 2)
        self.whole = self.run(root / "whole", expect=0)

    def run(self, folder: Path, *options: str, expect: int, die=None, seconds: float | None = None) -> Path:
        """One start; after so many seconds it is killed, unless it has ended by itself."""
        words = ["train", str(self.file), "--runs", str(folder.parent), "--name", folder.name, *options]
        process = stage_driver.command(words, self.root / folder.name, CACHE, die)
        process.join(seconds)
        process.kill()
        process.join()
        assert process.exitcode == expect, self.log(folder)[-3000:]
        return folder

    def log(self, folder: Path) -> str:
        return (self.root / f"{folder.name}.log").read_text("utf-8")


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory):
    return Pretraining(tmp_path_factory.mktemp("pretraining"))


def saved(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


@pytest.mark.fault(name="chaos")
def test_ten_kills_end_with_the_bits_of_an_undisturbed_run(pretraining):
    """At named moments and at any; each start may be killed before it has saved anything."""
    rng, chaos = random.Random(5), pretraining.root / "chaos"
    begun = time.monotonic()
    pretraining.run(chaos, die=("metrics", 1, SIGKILL), expect=-SIGKILL)
    start_seconds = time.monotonic() - begun
    for _ in range(KILLS - 1):
        moment = rng.choice(["metrics", "saving", "before saving", "sealing", "before sealing", "anywhere"])
        if moment == "anywhere":
            # In parts of a start, lest a fast machine ends before it is killed.
            end = {"seconds": rng.uniform(0.1, 1.5) * start_seconds}
        else:
            end = {"die": (moment, rng.randint(1, 5), SIGKILL)}
        pretraining.run(chaos, expect=-SIGKILL, **end)
    pretraining.run(chaos, expect=0)
    assert_same_run(pretraining.whole, chaos)
    starts = [event["step"] for event in read_events(chaos) if event["event"] == "start"]
    last = [event for event in read_events(chaos) if event["event"] == "saved"][-1]
    print(f"{KILLS} kills, starts at {starts}, goodput {last['goodput']}")


@pytest.mark.fault(name="save")
def test_kills_during_a_save_leave_the_one_before(pretraining):
    """Before it begins, while it is written, when all is written, and when it is sealed and has no name."""
    folder = pretraining.root / "killed_saving"
    for moment in ("before saving", "saving", "before sealing", "sealing"):
        pretraining.run(folder, die=(moment, 2, SIGKILL), expect=-SIGKILL)
        begun = list((folder / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
        assert "sealing" not in moment or (begun and saved(folder)), moment
    pretraining.run(folder, expect=0)
    assert_same_run(pretraining.whole, folder)
    assert all(path.name.isdigit() for path in (folder / "checkpoints").iterdir())


@pytest.mark.fault(name="sigterm")
def test_sigterm_saves_and_the_same_command_goes_on(pretraining):
    folder = pretraining.run(pretraining.root / "stopped", die=("metrics", 4, SIGTERM), expect=RESUBMIT)
    step = saved(folder)[-1]
    assert step % 3 and f"saved at step {step} after SIGTERM" in pretraining.log(folder)
    pretraining.run(folder, expect=0)
    assert f"resumed at step {step} of" in pretraining.log(folder)
    assert_same_run(pretraining.whole, folder)


@pytest.mark.fault(name="sigterm")
def test_several_processes_ask_the_service_by_a_number_that_only_grows(monkeypatch):
    """Steps begin anew in every stage, and the service has passed their numbers by."""
    asked = []
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("gptjax.training.stopping._handler_in_c", lambda: None)
    point = "jax.experimental.multihost_utils.reached_preemption_sync_point"
    monkeypatch.setattr(point, lambda number: asked.append(number) or len(asked) == 5)
    for steps in (3, 2):
        with StopSignal() as stop:
            answers = [stop.asked() for _ in range(steps)]
    assert answers == [False, True] and asked == list(range(asked[0], asked[0] + 5))


@pytest.mark.fault(name="sigterm")
def test_a_second_sigterm_leaves_at_once():
    """The first is waited out by a save that takes a minute."""
    program = (
        "import time\nfrom gptjax.training.stopping import StopSignal\n"
        "with StopSignal() as stop:\n"
        "    print('training', flush=True)\n"
        "    while not stop.asked(): time.sleep(0.01)\n"
        "    print('saving', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        for line in ("training", "saving"):
            assert process.stdout.readline().strip() == line and process.poll() is None
            process.send_signal(SIGTERM)
        begun = time.monotonic()
        assert process.wait(30) == RESUBMIT and time.monotonic() - begun < 10


@pytest.mark.fault(name="rewind")
def test_batches_that_are_left_out_stay_left_out(pretraining):
    """Back to an older checkpoint by the command line; killed before it comes there, it still knows."""
    folder = pretraining.run(pretraining.root / "rewound", die=("metrics", 8, SIGTERM), expect=RESUBMIT)
    before, stopped = saved(folder)
    options = ("--rewind-to", str(stopped - 1), "--skip-batches", f"{before + 3}:{before + 5}")
    pretraining.run(folder, *options, die=("metrics", 1, SIGKILL), expect=-SIGKILL)
    assert saved(folder) == [before] and (folder / f"checkpoints-rewound/{stopped}").is_dir()
    pretraining.run(folder, expect=0)
    rows = {row["step"]: row for row in read_metrics(folder / "metrics.jsonl")}
    assert sorted(rows) == list(range(1, STEPS + 1))
    assert [step for step in rows if "left_out" in rows[step]] == [before + 3, before + 4]
    kinds = [event["event"] for event in read_events(folder)]
    assert kinds.count("rewound") == kinds.count("batches left out") == 1
    theirs = {row["step"]: row for row in read_metrics(pretraining.whole / "metrics.jsonl")}
    same = [step for step in rows if rows[step].get("loss") == theirs[step]["loss"]]
    assert same == list(range(1, before + 3)), "the same bits up to there, others after"


@pytest.fixture
def command_line(monkeypatch):
    """Runs the command line here, where there are eight devices."""
    monkeypatch.setattr("gptjax.environment.use_compilation_cache", lambda: None)
    before = signal.getsignal(SIGTERM)
    yield cli.main
    signal.signal(SIGTERM, before)


@pytest.mark.fault(name="reshard")
def test_a_run_goes_on_on_other_meshes(tmp_path, command_line, monkeypatch, capsys):
    """From eight devices to 4 x 2, to 2, to 1: the stored bits come back each time, the losses agree."""
    file = write_experiment(tmp_path, steps=8, save_every=50, eval_every=0)
    write, restore, bits = MetricsWriter.write, Checkpoints.restore, []

    def restored(self, step, like):
        state = restore(self, step, like)
        stored = read_facts(tmp_path / "moved/checkpoints" / str(step))["leaves"]
        found = leaf_digests(state)
        bits.append(found == {name: digest for name, (_, _, digest) in stored.items()})
        return state

    def train(name, stop_at, *options):
        def stopping(self, step, *line):
            write(self, step, *line)
            if step == stop_at:
                os.kill(os.getpid(), SIGTERM)

        monkeypatch.setattr(MetricsWriter, "write", stopping)
        return command_line(["train", str(file), "--runs", str(tmp_path), "--name", name, *options])

    monkeypatch.setattr(Checkpoints, "restore", restored)
    eight = ("--mesh.fsdp", "8")
    assert train("whole", None, *eight) == 0
    others = ("--mesh.data", "4", "--mesh.fsdp", "2"), ("--mesh.fsdp", "2", "--accumulate", "2")
    for stop_at, options in zip((1, 3, 5), (eight, *others), strict=True):
        with pytest.raises(SystemExit) as stopped:
            train("moved", stop_at, *options)
        assert stopped.value.code == RESUBMIT
    assert train("moved", None) == 0
    assert bits == [True] * 3
    whole, moved = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "moved"))
    assert [row["loss"] for row in moved] == pytest.approx([row["loss"] for row in whole], rel=2e-6)
    noted = [e["changes"] for e in read_events(tmp_path / "moved") if e["event"] == SETTINGS_CHANGED]
    assert noted[0] == ["mesh.data was 1, is 4", "mesh.fsdp was 8, is 2"] and len(noted) == 3
    assert f"moved goes on with other settings: {'; '.join(noted[1])}" in capsys.readouterr().out
    assert verify(tmp_path / "moved")


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


@pytest.mark.fault(name="disk")
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


@pytest.mark.fault(name="disk")
def test_a_run_on_a_full_disk_leaves_with_74_and_goes_on_when_there_is_room(pretraining, small_disk):
    """Room for what is logged and not for a checkpoint; then for nothing at all."""
    folder = pretraining.run(small_disk / "full", die=("metrics", 4, SIGTERM), expect=RESUBMIT)
    steps = saved(folder)
    with (small_disk / "others").open("wb", buffering=0) as others:
        block = os.urandom(1 << 16)
        try:
            while True:
                others.write(block)
        except OSError:  # it is full
            others.truncate(others.tell() - (100 << 10))
    pretraining.run(folder, expect=DISK)
    log = pretraining.log(folder)
    assert log.count("is not saved in") == 2 and "2 checkpoints in a row could not be written" in log
    assert saved(folder) == steps and f"step {steps[-1]} is intact" in log
    with (small_disk / "others").open("ab", buffering=0) as others, pytest.raises(OSError):
        while others.write(block):
            pass
    pretraining.run(folder, expect=DISK)
    assert "the disk is full: make room there" in pretraining.log(folder) and saved(folder) == steps
    (small_disk / "others").unlink()
    pretraining.run(folder, expect=0)
    assert_same_run(pretraining.whole, folder)
