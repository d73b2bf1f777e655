"""The watchdog: it bites when steps stop, says where, and lets everything take its time that may."""

import subprocess
import sys
import threading
import time

import pytest

from gptjax.training.watchdog import Watchdog, linger_of

pytestmark = pytest.mark.fault(name="hang")


def watched(tmp_path, at_least=0.2, elsewhere=60.0):
    """(watchdog, list that gets the exit code)."""
    codes = []
    return Watchdog(tmp_path, 3, at_least, elsewhere, leave=codes.append), codes


def some_steps(dog, seconds=0.001, count=5):
    for _ in range(count):
        time.sleep(seconds)
        dog.beat()


def a_step_that_hangs(seconds):
    time.sleep(seconds)


def test_a_hang_ends_the_process_and_leaves_every_stack(tmp_path, capfd):
    dog, codes = watched(tmp_path)
    idle = threading.Thread(target=a_step_that_hangs, args=(1.0,))
    idle.start()
    with dog:
        some_steps(dog)
        a_step_that_hangs(0.6)
    idle.join()
    assert codes == [75]
    written = (tmp_path / "stacks-3.txt").read_text("utf-8")
    for text in (written, capfd.readouterr().err):
        assert "no step has finished for" in text
        assert text.count("in a_step_that_hangs") == 2  # of the main thread and of the other


def test_the_first_of_several_processes_leaves_last(tmp_path):
    assert (linger_of(0, 1), linger_of(1, 2)) == (0.0, 0.0) and linger_of(0, 2) > 0
    left = []
    begun = time.monotonic()
    dog = Watchdog(tmp_path, 0, at_least=0.2, linger=0.5, leave=lambda code: left.append(time.monotonic()))
    with dog:
        some_steps(dog)
        a_step_that_hangs(1.2)
    assert left[0] >= begun + 0.7


def test_what_may_take_long_is_not_bitten(tmp_path):
    dog, codes = watched(tmp_path)
    with dog:
        time.sleep(0.4)  # nothing has finished yet: the program is being compiled
        some_steps(dog)
        with dog.patience():
            time.sleep(0.4)
        some_steps(dog)
    assert codes == [] and not (tmp_path / "stacks-3.txt").exists()


def test_the_limit_is_ten_steps_where_that_is_more(tmp_path):
    dog, _ = watched(tmp_path, at_least=0.05)
    dog.beat()
    some_steps(dog, seconds=0.02)
    assert 0.2 <= dog.limit() < 1.0
    dog, _ = watched(tmp_path, at_least=5.0)
    dog.beat()
    some_steps(dog)
    assert dog.limit() == 5.0


def test_beginning_for_ever_is_a_hang_too(tmp_path, capfd):
    dog, codes = watched(tmp_path, elsewhere=0.2)
    with dog:
        time.sleep(0.5)
    assert codes == [75]


def test_a_compilation_is_no_hang(tmp_path):
    dog, _ = watched(tmp_path)
    dog.beat()
    some_steps(dog)
    assert dog.limit() == 0.2
    scope = {"dog": dog}
    exec(compile("limit = dog.limit()", "/somewhere/jax/_src/compiler.py", "exec"), scope)
    assert scope["limit"] == 60.0


@pytest.mark.slow
def test_the_exit_code_of_a_real_process(tmp_path):
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom gptjax.training.watchdog import Watchdog\n"
        "with Watchdog(Path(sys.argv[1]), at_least=0.3) as dog:\n"
        "    for _ in range(3): time.sleep(0.01); dog.beat()\n"
        "    time.sleep(60)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, timeout=50
    )
    assert ran.returncode == 75 and "no step has finished" in ran.stderr and "<module>" in ran.stderr
