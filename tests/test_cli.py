"""The console script."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from gptjax import cli, environment
from gptjax.environment import usable_cores, use_compilation_cache

TESTS = Path(__file__).parent
CHILD = '''"""A tiny experiment, for tests.

Expected: nothing much.
"""
from fake_stage import FakeConfig

def config():
    return FakeConfig()
'''


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with `experiments/tiny.py`, the compilation cache left alone."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "tiny.py").write_text(CHILD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(environment, "use_compilation_cache", lambda: None)
    return tmp_path


def gptjax(*words):
    return cli.main(list(words))


def test_help_is_fast_because_nothing_heavy_is_imported():
    code = (
        "import sys; from gptjax import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'jax', 'numpy', 'pydantic', 'flax'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
    for command in ("train", "sweep", "compare", "chat", "report", "import", "export", "models", "env"):
        assert f"\n    {command}" in done.stdout


def test_train_runs_the_stage_into_its_folder(workplace, capsys):
    assert gptjax("train", "experiments/tiny.py", "--steps", "3") == 0
    run = workplace / "runs" / "tiny"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
    assert json.loads((run / "config.json").read_text())["steps"] == 3
    shown = capsys.readouterr().out
    assert "backend cpu" in shown and "run folder runs/tiny" in shown


def test_name_and_runs_choose_the_folder(workplace):
    assert gptjax("train", "experiments/tiny.py", "--runs", "elsewhere", "--name=other", "--steps", "1") == 0
    assert (workplace / "elsewhere" / "other" / "done.json").exists()


def test_print_config_shows_the_result_and_runs_nothing(workplace, capsys):
    assert gptjax("train", "experiments/tiny.py", "--print-config", "--steps=9") == 0
    assert json.loads(capsys.readouterr().out) == {"type": "fake_stage:FakeConfig", "steps": 9, "end": "well"}
    assert not (workplace / "runs").exists()


def test_help_of_an_experiment_shows_its_docstring_and_keys(workplace, capsys):
    assert gptjax("train", "experiments/tiny.py", "--help") == 0
    shown = capsys.readouterr().out
    assert "A tiny experiment, for tests." in shown
    assert "--steps  int = 2   lines of metrics." in shown
    assert not (workplace / "runs").exists()


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["experiments/tini.py"], 2, "the nearest is experiments/tiny.py"),
        (["experiments/tiny.py", "--stepz", "1"], 2, "unknown key 'stepz' in experiments/tiny.py"),
        (["experiments/tiny.py", "--steps", "x"], 2, "must be an integer"),
        (["experiments/tiny.py", "--steps", "-1.5"], 2, "must be an integer, but '-1.5' was given"),
        (["experiments/tiny.py", "--print-confg"], 2, "the nearest valid option is '--print-config'"),
        (["experiments/tiny.py", "--rewind-to", "x"], 2, "'--rewind-to' of gptjax train must be an integer"),
        (["experiments/tiny.py", "--runs"], 2, "option '--runs' of gptjax train has no value: write --runs"),
        (
            ["experiments/tiny.py", "--runs", "experiments/tiny.py"],
            2,
            "experiments/tiny.py/tiny cannot be made",
        ),
        (["experiments/tiny.py", "--end", "settings"], 64, "this cannot be"),
        (["experiments/tiny.py", "--end", "data"], 65, "too many bad rows"),
    ],
)
def test_an_error_is_one_sentence_and_an_exit_code(workplace, capsys, words, code, sentence):
    assert gptjax("train", *words) == code
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1 and sentence in shown


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("", "gptjax needs COMMAND: see gptjax --help"),
        ("tran experiments/tiny.py", "unknown command 'tran' of gptjax: the nearest is 'train'"),
        ("sweep", "gptjax sweep needs file: see gptjax sweep --help"),
        (
            "sweep x.py --backend slrm",
            "unknown --backend 'slrm' of gptjax sweep: the nearest among local, slurm, print is 'slurm'",
        ),
        ("sweep x.py --jobs two", "option '--jobs' of gptjax sweep must be an integer, but 'two' was given"),
        ("compare x.py --metrc a", "unknown option '--metrc' of gptjax compare: the nearest is '--metric'"),
        (
            "compare x.py --metric a --runs",
            "option '--runs' of gptjax compare has no value: write --runs VALUE",
        ),
        ("env now", "unrecognized arguments: now: see gptjax env --help"),
        ("plan", "gptjax plan needs experiment: see gptjax plan --help"),
        ("plan x.py --price much", "option '--price' of gptjax plan must be a number, but 'much' was given"),
    ],
)
def test_a_mistyped_command_is_one_sentence(workplace, capsys, command, sentence):
    assert gptjax(*command.split()) == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_an_interrupt_is_130_and_a_stop_signal_75(workplace, capsys):
    assert gptjax("train", "experiments/tiny.py", "--end", "interrupted") == 130
    with pytest.raises(SystemExit) as stop:
        gptjax("train", "experiments/tiny.py", "--name", "b", "--end", "stopped")
    assert stop.value.code == 75


def test_what_nobody_foresaw_is_70_with_a_traceback(workplace, capsys):
    assert gptjax("train", "experiments/tiny.py", "--end", "badly") == 70
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_options_that_change_a_run_need_one_that_has_begun(workplace, capsys):
    for option in (["--rewind-to", "3"], ["--skip-batches", "3:5"]):
        assert gptjax("train", "experiments/tiny.py", *option) == 2
        assert "need one unfinished stage with checkpoints in" in capsys.readouterr().err


def test_a_changed_configuration_is_refused_before_a_hand_is_laid_on_the_run(workplace, capsys):
    assert gptjax("train", "experiments/tiny.py") == 0
    (workplace / "runs/tiny/done.json").unlink(missing_ok=True)
    (workplace / "runs/tiny/checkpoints/3").mkdir(parents=True)
    words = ("--steps", "5", "--rewind-to", "0", "--skip-batches", "1:2")
    assert gptjax("train", "experiments/tiny.py", *words) == 2
    assert "holds a run with another configuration" in capsys.readouterr().err
    assert (workplace / "runs/tiny/checkpoints/3").exists()
    assert not (workplace / "runs/tiny/interventions.json").exists()


def test_a_mistake_in_the_data_does_not_take_the_run_s_name(workplace):
    assert gptjax("train", "experiments/tiny.py", "--end", "data") == 65
    assert gptjax("train", "experiments/tiny.py") == 0


def test_a_changed_configuration_is_refused(workplace, capsys):
    assert gptjax("train", "experiments/tiny.py") == 0
    assert gptjax("train", "experiments/tiny.py", "--steps", "5") == 2
    assert "steps was 2, is 5" in capsys.readouterr().err


def test_a_configuration_without_a_stage_is_refused(workplace, capsys):
    text = "from gptjax.training.optimizers import OptimizerConfig as config\n"
    (workplace / "experiments" / "part.py").write_text(text)
    assert gptjax("train", "experiments/part.py") == 2
    assert "OptimizerConfig is not a stage's configuration" in capsys.readouterr().err


def test_report_of_a_single_stage(workplace, capsys):
    gptjax("train", "experiments/tiny.py")
    assert gptjax("report", "runs/tiny") == 0
    assert capsys.readouterr().out.endswith("runs/tiny/report.html\n")
    assert "<h2>Curves: tiny</h2>" in (workplace / "runs/tiny/report.html").read_text()


@pytest.mark.parametrize("command", ["chat", "report"])
def test_a_missing_run_names_the_nearest(workplace, capsys, command):
    assert gptjax(command, "runs/tiny") == 2
    assert "train one with ./launch.sh quickstart" in capsys.readouterr().err
    gptjax("train", "experiments/tiny.py")
    assert gptjax(command, "runs/tinny") == 2
    assert "the nearest is runs/tiny" in capsys.readouterr().err


def test_chat_settings_are_checked_before_anything_is_loaded(workplace, capsys):
    assert gptjax("chat", "runs/none", "--temperature", "hot") == 2
    assert "temperature must be a number" in capsys.readouterr().err


def test_env_can_be_pasted_and_parsed(capsys):
    assert gptjax("env") == 0
    assert f"jax=={jax.__version__}" in capsys.readouterr().out
    assert gptjax("env", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["backend"] == "cpu" and facts["packages"]["jax"] == jax.__version__


def test_a_platform_that_is_not_there_is_named():
    environment = {**os.environ, "JAX_PLATFORMS": "cuda"}
    words = [sys.executable, "-m", "gptjax.cli", "env"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        pytest.skip("this machine has CUDA")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "error: JAX finds no device for JAX_PLATFORMS=cuda: unset it"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_is_no_traceback(workplace, unbuffered):
    words = [sys.executable, "-m", "gptjax.cli", "train", "experiments/tiny.py", "--print-config"]
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}", "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(words, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (cli.BROKEN_PIPE, "")


def test_a_second_start_finds_the_compiled_program(tmp_path):
    """Two processes share a cache that only the user may enter."""
    code = (
        "import jax; from gptjax import environment; environment.use_compilation_cache()\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "events = []\n"
        "jax.monitoring.register_event_listener(lambda name, **_: events.append(name))\n"
        "jax.jit(lambda x: x * 2 + 1)(jax.numpy.ones(3)).block_until_ready()\n"
        "print(sum(name.endswith('cache_hits') for name in events))"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    hits = [
        int(
            subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, check=True
            ).stdout
        )
        for _ in range(2)
    ]
    assert hits[0] == 0 and hits[1] > 0
    (folder,) = (tmp_path / ".cache/gptjax/jax").iterdir()
    assert folder.name == f"cores-{usable_cores()}" and any(folder.iterdir())
    assert {stat.S_IMODE(kept.stat().st_mode) for kept in (folder, folder.parent)} == {0o700}


def test_other_cores_have_programs_of_their_own(tmp_path, monkeypatch):
    """A program that was made for one core adds up in another order than one for two."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("jax.config.update", lambda name, value: None)
    for cores in ({0}, {0, 1}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores, raising=False)
        assert use_compilation_cache() == tmp_path / f"cores-{len(cores)}"
