"""The notebook: its cells are plain Python, so they run in order in one namespace, with no kernel at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks/colab.ipynb"
CELLS = [
    "".join(cell["source"])
    for cell in json.loads(NOTEBOOK.read_text())["cells"]
    if cell["cell_type"] == "code"
]
# Runs the cells as a notebook would: one namespace, in order, and what fails names its cell.
RUNNER = """
import json, sys
cells = json.load(open(sys.argv[1]))["cells"]
names = {"__name__": "__main__"}
for number, cell in enumerate([cell for cell in cells if cell["cell_type"] == "code"], 1):
    exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
"""


def run(folder, *, environment=(), before="", notebook=NOTEBOOK, start=NOTEBOOK.parent):
    settings = {"MPLBACKEND": "agg", "NOTEBOOK_STEPS": "4", "NOTEBOOK_RUN": str(folder / "run")}
    return subprocess.run(
        [sys.executable, "-c", before + RUNNER, notebook],
        cwd=start,  # as it lies in a checkout
        env=os.environ | settings | dict(environment),
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_notebook_is_one_and_holds_no_output():
    notebook = json.loads(NOTEBOOK.read_text())
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    for number, cell in enumerate(CELLS, 1):
        compile(cell, f"cell {number}", "exec")  # no shell lines, no magics


def test_jax_is_installed_before_it_is_imported():
    first = [number for number, cell in enumerate(CELLS) if "import jax" in cell.splitlines()][0]
    install = [number for number, cell in enumerate(CELLS) if '"pip", "install"' in cell][0]
    assert install < first
    assert "jax.default_backend() == BACKEND" in CELLS[first]


def test_an_imported_jax_is_refused(tmp_path):
    done = run(tmp_path, before="import sys; sys.modules['jax'] = sys\n")
    assert done.returncode and "JAX is imported already: restart the session" in done.stderr


def first_cell(folder, repository):
    """The notebook's first cell, its field filled in, run in a folder that is no checkout."""
    cell = CELLS[0].replace('REPOSITORY = ""', f"REPOSITORY = {repository!r}")
    assert repository in cell and "# @param" in cell
    told = "\nimport gptjax; print('from', gptjax.__file__, 'in', Path.cwd())"
    cells = [{"cell_type": "code", "source": [cell + told]}]
    (folder / "first.ipynb").write_text(json.dumps({"cells": cells}))
    return run(folder, notebook=folder / "first.ipynb", start=folder)


def test_without_a_checkout_the_repository_is_cloned(tmp_path):
    pytest.importorskip("chatterbot_corpus", reason="the cell would install chatterbot-corpus (gptjax[data])")
    pytest.importorskip("matplotlib", reason="the cell would install matplotlib (gptjax[report])")
    repository, start = tmp_path / "origin", tmp_path / "content"
    (repository / "gptjax").mkdir(parents=True)
    for name in ("__init__.py", "cli.py"):
        (repository / "gptjax" / name).touch()
    author = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    for words in (["init"], ["add", "."], [*author, "commit", "-m", "A"]):
        subprocess.run(["git", *words], cwd=repository, check=True, capture_output=True)
    start.mkdir()
    for _ in range(2):  # run again, it uses what it cloned
        done = first_cell(start, repository.as_uri())
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"from {start}/gptjax/gptjax/__init__.py in {start}/gptjax" in done.stdout


@pytest.mark.parametrize(
    ("repository", "sentence"),
    [
        ("", "REPOSITORY is empty and this is no checkout: write the address of the repository"),
        ("file:///nowhere", "file:///nowhere cannot be cloned: write another address into REPOSITORY"),
    ],
)
def test_an_address_that_is_missing_or_wrong_is_said_so(tmp_path, repository, sentence):
    done = first_cell(tmp_path, repository)
    assert done.returncode and sentence in done.stderr


@pytest.mark.slow
def test_the_notebook_trains_plots_and_chats(tmp_path):
    pytest.importorskip("chatterbot_corpus", reason="chatterbot-corpus is not installed (gptjax[data])")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (gptjax[report])")
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "installed for cpu" in done.stdout and "backend cpu" in done.stdout
    assert "pretrain 4/4" in done.stdout and "finetune 8/8" in done.stdout
    assert (tmp_path / "run/curves.png").stat().st_size > 5000
    assert done.stdout.count("\nmodel: ") == 3
    again = run(tmp_path)
    assert again.returncode == 0 and "already done" in again.stdout, "run again, it trains no further"


@pytest.mark.slow
def test_another_backend_than_the_runtime_has_is_refused(tmp_path):
    told = "import os; os.path.exists\nimport pathlib\nreal = pathlib.Path.exists\n"
    told += "pathlib.Path.exists = lambda self: str(self) == '/dev/nvidia0' or real(self)\n"
    told += "import subprocess; subprocess.run = lambda *a, **k: None\n"
    done = run(tmp_path, before=told, environment={"JAX_PLATFORMS": "cpu"})
    assert done.returncode and "this runtime has a gpu, but JAX runs on the cpu" in done.stderr
