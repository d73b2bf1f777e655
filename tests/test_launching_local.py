"""Several processes on this machine: real ones, started, followed, stopped, started again."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptjax.launching import local
from gptjax.launching.__main__ import main

ROOT = Path(__file__).parent.parent
# A worker that counts its attempts and ends with the code that is its turn; it knows its place.
WORKER = """
import os, signal, sys, time
from pathlib import Path
index, ends = os.environ.get("JAX_PROCESS_ID", "0"), sys.argv[1:]
count = Path(f"attempts-{index}")
attempt = int(count.read_text()) + 1 if count.exists() else 1
count.write_text(str(attempt))
print("worker", index, "of", os.environ.get("JAX_NUM_PROCESSES", "1"), "attempt", attempt, flush=True)
end = ends[attempt - 1].split(",")[int(index)]
if end == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print("ready", flush=True)
    time.sleep(60)
elif end == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(end))
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Handlers belong to a launcher's process, and this one is the tests'.
    monkeypatch.setattr(local.signal, "signal", lambda *_: None)
    Path("worker.py").write_text(WORKER)
    return (sys.executable, "worker.py")


def attempts():
    return [int(path.read_text()) for path in sorted(Path().glob("attempts-*"))]


def test_every_worker_runs_and_the_first_one_speaks(worker, capfd):
    assert main(["local", "--processes", "3", "--name", "demo", "--", *worker, "0,0,0"]) == 0
    assert "worker 0 of 3 attempt 1" in capfd.readouterr().out
    for index in range(3):
        log = Path(f".launch/demo/worker-{index}.log").read_text()
        assert log == f"--- attempt 1\nworker {index} of 3 attempt 1\n"


def test_75_starts_all_again_and_then_it_ends(worker, capfd):
    assert main(["local", "--processes", "2", "--", *worker, "0,75", "75,75", "0,0", "1,1"]) == 0
    assert attempts() == [3, 3] and "local is started again, attempt 3" in capfd.readouterr().out


def test_a_killed_worker_takes_the_others_along_and_all_start_again(worker, monkeypatch):
    monkeypatch.setattr(local, "TO_NOTICE", 0.5)
    assert main(["local", "--processes", "2", "--", *worker, "wait,killed", "0,0"]) == 0
    assert attempts() == [2, 2]


def test_another_code_ends_the_launch(worker, monkeypatch):
    monkeypatch.setattr(local, "TO_NOTICE", 0.5)
    assert main(["local", "--processes", "2", "--", *worker, "wait,64", "0,0"]) == 64
    assert attempts() == [1, 1]


def test_retries_end(worker, capfd):
    assert main(["local", "--retries", "1", "--", *worker, "75", "75", "0"]) == 75
    assert attempts() == [2] and "was started again 1 times" in capfd.readouterr().out


def test_a_launch_is_looked_at_and_stopped(worker, capfd):
    words = ["local", "--processes", "2", "--name", "demo", "--", *worker, "wait,wait", "0,0"]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "gptjax.launching", *words], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    logs = [Path(f".launch/demo/worker-{index}.log") for index in (0, 1)]
    limit = time.monotonic() + 20
    while not all(log.exists() and "ready" in log.read_text() for log in logs):
        assert time.monotonic() < limit and launcher.poll() is None
        time.sleep(0.02)
    main(["status", "demo"])
    assert "demo: running" in capfd.readouterr().out
    assert main(words) == 2 and "demo runs already" in capfd.readouterr().err
    assert main(["stop", "demo"]) == 0
    assert launcher.wait(20) == 75, "it saves, and is not started again"
    assert attempts() == [1, 1]
    main(["status", "demo"])
    assert "demo: not running" in capfd.readouterr().out
    assert main(["stop", "demo"]) == 2 and "demo does not run any more" in capfd.readouterr().err


def test_workers_get_their_devices(worker):
    code = "import os; print(os.environ['JAX_PLATFORMS'], os.environ['JAX_NUM_CPU_DEVICES'])"
    assert main(["local", "--processes", "2", "--devices", "4", "--", sys.executable, "-c", code]) == 0
    assert Path(".launch/local/worker-1.log").read_text().endswith("cpu 4\n")
