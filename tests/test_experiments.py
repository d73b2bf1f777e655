"""Every experiment file says what it is and resolves; `test_planning_experiments.py` lowers its programs."""

import json
import re
from pathlib import Path

import pytest

from gptjax.config import ConfigError, experiment_docstring, from_json, load_experiment, to_json

ROOT = Path(__file__).parents[1]
FILES = sorted(
    str(file.relative_to(ROOT))
    for file in ROOT.glob("experiments/**/*.py")
    if file.name not in ("external_data.py", "sweep.py")
)


def test_there_are_experiments():
    assert "experiments/quickstart.py" in FILES


def load(file):
    """The configuration of an experiment; skips where the data that it names is absent."""
    try:
        return load_experiment(ROOT / file)
    except ConfigError as error:
        if "GPTJAX_DATA" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("file", FILES)
def test_an_experiment_says_what_it_is_and_survives_json(file):
    config, text = load(file), experiment_docstring(ROOT / file)
    for heading in ("Paper:", "Expected:", "Time:", "Command:"):
        assert heading in text, f"the docstring of {file} has no '{heading}'"
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


SYSTEMS = ("transformer2017", "bert", "gpt1", "gpt2", "gpt3", "codex", "llama", "alpaca", "glm")


@pytest.mark.parametrize("file", [file for file in FILES if Path(file).parts[1] in SYSTEMS])
def test_a_system_says_which_figure_to_expect_and_how_long_it_takes(file):
    told = experiment_docstring(ROOT / file)
    expected, time = re.search(r"Expected: (.*?)Time: (.*?)Command:", told, re.S).groups()
    assert re.search(r"\d", expected), f"no figure in {expected!r}"
    assert re.search(r"minute|second|that of", time), f"no duration in {time!r}"


def test_the_table_has_the_systems_with_command_claim_figure_and_verdict():
    table = (ROOT / "experiments/README.md").read_text("utf-8").split("## The systems of the road")[1]
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.split("##")[0].splitlines()
        if line.startswith("|")
    ]
    assert header == ["system", "command", "the paper's claim", "our figure", "verdict"]
    for system in SYSTEMS:
        command = f"`gptjax sweep experiments/{system}/sweep.py`"
        (row,) = [row for row in rows if command in row[1]]
        _, _, claim, figure, verdict = row
        assert claim and "reproduced" in verdict and "±" in figure
