"""Every experiment file says what it is and resolves; `test_planning_experiments.py` lowers its programs."""

import json
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
