"""Every command in a sentence or a table of a page, in the papers' pages and in experiment files is one.

Those in the bash blocks of docs are run by `test_docs.py`. Here options are parsed by the command line
itself, and files, extras, run folders and metrics are looked for; nothing is trained.
"""

import configparser
import functools
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from documentation import PAGES, ROOT, experiment_files

from gptjax import cli
from gptjax.config import ConfigError, experiment_docstring, load_experiment
from gptjax.overrides import override
from gptjax.planning import command as planning
from gptjax.planning.topology import parse_topology
from gptjax.stages.command import run_train
from gptjax.sweeps.plan import load_sweep

PAPERS = {
    str(page.relative_to(ROOT)): page.read_text("utf-8")
    for page in sorted(ROOT.glob("experiments/*/README.md"))
}
PROGRAMS = ("gptjax ", "./launch.sh ", "bash ", "python ", "pip ")
# Every other program of a block would not be found.
STUBS = """
gptjax() { printf '%q ' gptjax "$@"; echo; }
launch() { printf '%q ' ./launch.sh "$@"; echo; }
python() { printf '%q ' python "$@"; echo; }
"""
# What writes the figures of `done.json`.
MEASURING = "".join(
    file.read_text("utf-8")
    for room in ("stages", "evaluation")
    for file in (ROOT / "gptjax" / room).glob("*.py")
)


def in_sentences(text: str) -> list[str]:
    """The code spans of a page that begin with a program and say more than its name."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    return [span for span in spans if span.startswith(PROGRAMS)]


def in_blocks(text: str) -> list[str]:
    """The commands that bash comes to in the blocks of a page, of the first seed alone."""
    script = "".join(re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    script = script.replace("./launch.sh", "launch").replace("for seed in 0 1 2", "for seed in 0")
    bash = ["/bin/bash", "-euc", STUBS + script]
    done = subprocess.run(bash, env={"PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# CHANGELOG.md tells what there is, in forms.
PROSE = {page: text for page, text in (PAGES | PAPERS).items() if page != "CHANGELOG.md"}
SENTENCES = sorted({span for text in PROSE.values() for span in in_sentences(text)})
BLOCKS = [(page, command) for page, text in PAPERS.items() for command in in_blocks(text)]
FILES = sorted(
    str(file.relative_to(ROOT))
    for file in ROOT.glob("experiments/**/*.py")
    if file.name != "external_data.py"
)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Commands are typed in the checkout."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def stands_for(tmp_path_factory):
    """What is typed for a word of the pages: a name in capitals, or one of their own experiment files."""
    words = {"EXPERIMENT": "experiments/quickstart.py", "RUN": "runs/quickstart", "NAME": "absent"}
    folder = tmp_path_factory.mktemp("pages")
    (folder / "experiments").mkdir()
    for path, text in experiment_files().items():
        (folder / path).write_text(text, "utf-8")
        words[path] = str(folder / path)
    return words


def resolve(command: str, stands_for: dict[str, str]) -> None:
    """Fails where a command cannot be typed; skips where it needs data that is not bundled."""
    program, *words = [stands_for.get(word, word) for word in shlex.split(command)]
    try:
        if program == "gptjax":
            resolve_gptjax(*words)
        elif program == "./launch.sh":
            resolve_launch(*words)
        elif program == "bash":
            assert subprocess.run(["bash", "-n", *words]).returncode == 0 and os.access(words[0], os.X_OK)
        elif program == "pip":
            setup = configparser.ConfigParser()
            setup.read("setup.cfg")
            assert re.fullmatch(r"gptjax\[(\w+)\]", words[1])[1] in setup["options.extras_require"]
        elif words[0] == "experiments/external_data.py":
            assert len(words) == 2 and Path(words[0]).exists(), "it takes the file to write"
        elif words[0] == "-m":
            assert importlib.util.find_spec(words[1])
        else:
            importlib.import_module(Path(words[0]).stem).options().parse_args(words[1:])
    except ConfigError as error:
        if "GPTJAX_DATA" not in str(error):
            raise
        pytest.skip(str(error))


def resolve_gptjax(name: str, *words: str) -> None:
    """As `resolve`, of what follows `gptjax`."""
    if name == "--help" or not words:
        assert name == "--help" or f"\n    {name} " in cli.parser().format_help()
    elif name == "train":
        assert run_train([*words, *([] if "--help" in words else ["--print-config"])]) == 0
    elif name == "plan":
        options, keys = planning.parser().parse_known_args(words)
        override(load_experiment(options.experiment), keys, options.experiment)
        parse_topology(options.topology)
    else:
        options = cli.parser().parse_args([name, *words])
        files = {"sweep": [getattr(options, "file", "")], "compare": getattr(options, "targets", [])}
        for file in files.get(name, []):
            check_sweep(file, getattr(options, "metric", []))


def check_sweep(file: str | Path, metrics: list[str]) -> None:
    """A sweep loads, and every part of a metric is a name that the code or the sweep's file writes."""
    load_sweep(file)
    for part in {part for metric in metrics for part in metric.split(".")}:
        known = re.search(rf"[\"']{re.escape(part)}[\"']", MEASURING) or part in Path(file).read_text("utf-8")
        assert known, f"nothing that {file} runs writes '{part}'"


@functools.cache
def resolve_launch(name: str, *words: str) -> None:
    """As `resolve`, of what follows `./launch.sh`."""
    typed = ["./launch.sh", name, "--dry-run", *words]
    shown = subprocess.run(typed, capture_output=True, text=True)
    if "absent" in words:
        assert shown.stderr.startswith("error: there is no launch absent"), shown.stderr
    else:
        assert shown.returncode == 0 and shown.stdout.strip(), shown.stderr


@pytest.mark.parametrize("command", SENTENCES)
def test_a_command_in_a_sentence_can_be_typed(command, stands_for):
    resolve(command, stands_for)


@pytest.mark.parametrize(("page", "command"), BLOCKS)
def test_a_command_of_a_paper_can_be_typed(page, command, stands_for):
    made = {word for other, typed in BLOCKS if other == page for word in re.findall(r"--name (\S+)", typed)}
    made |= {file for other, typed in BLOCKS for file in re.findall(r"external_data.py runs/(\S+)", typed)}
    made |= {"quickstart", "smollm2"}  # by `./launch.sh quickstart` and `./launch.sh chat`
    for folder in re.findall(r"runs/([\w./-]+)", command):
        folder = re.sub(r"-[12]$", "-0", folder)  # blocks are read for the first seed
        below = {folder, *map(str, Path(folder).parents)}
        assert below & made, f"no command of {page} makes runs/{folder}"
    resolve(command, stands_for)


@pytest.mark.parametrize("file", FILES)
def test_an_experiment_file_names_a_command_that_can_be_typed(file, stands_for):
    command = re.search(r"^Command: (.+)$", experiment_docstring(file), re.MULTILINE)[1]
    assert file in command or command == "./launch.sh quickstart", f"{file} names another: {command}"
    resolve(command, stands_for)
