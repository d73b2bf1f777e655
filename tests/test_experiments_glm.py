"""Every experiment of GLM runs two steps, in a small size on a little of the data it names."""

import dataclasses
import gzip
import importlib
from pathlib import Path

import pytest

from gptjax.config import ConfigError, load_experiment
from gptjax.runs import read_done

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "experiments" / "glm"


def load(arm):
    try:
        return load_experiment(FOLDER / f"{arm}.py")
    except ConfigError as error:
        if "GPTJAX_DATA" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The first paragraphs of the experiments' texts."""
    file = next(iter(load("infill").corpora)).rpartition(":")[0]
    little = tmp_path_factory.mktemp("texts") / "little.jsonl"
    with gzip.open(file, "rt", encoding="utf-8") as rows:
        little.write_text("".join(row for row, _ in zip(rows, range(600), strict=False)), "utf-8")
    return little


@pytest.fixture(scope="module")
def run(texts, tmp_path_factory):
    """`arm -> its run folder`; the tokenizer is trained once."""
    root, done = tmp_path_factory.mktemp("runs"), {}

    def run_arm(arm):
        if arm not in done:
            config, tokenizer = load(arm), root / "infill" / "tokenizer.model"
            small = {"vocab_size": 1600, "width": 16, "layers": 1, "heads": 2}
            config = dataclasses.replace(
                config,
                model=dataclasses.replace(config.model, **small),
                corpora={f"{texts}:{language}": 0.5 for language in ("en", "zh")},
                tokenizer=str(tokenizer) if tokenizer.exists() else None,
                heldout_rows=4,
                steps=2,
            )
            importlib.import_module(type(config).__module__).run(config, root / arm)
            done[arm] = root / arm
        return done[arm]

    return run_arm


@pytest.mark.parametrize("arm", ["infill", "left_to_right", "multitask"])
def test_an_arm_measures_the_same_blanks_in_both_languages(arm, run):
    found = read_done(run(arm))["heldout"]
    assert [source[-3:] for source in found] == [":en", ":zh"]
    for figures in found.values():
        assert figures["blanks"]["tokens"] == figures["from_left"]["tokens"] > 4


def test_the_assistant_starts_from_the_mixture(run, tmp_path):
    pytest.importorskip("chatterbot_corpus", reason="chatterbot-corpus is not installed (gptjax[data])")
    config = load("chat")
    assert config.base == "runs/glm/multitask"
    config = dataclasses.replace(config, base=str(run("multitask")), steps=2, samples=0)
    importlib.import_module(type(config).__module__).run(config, tmp_path / "chat")
    assert set(read_done(tmp_path / "chat")["dialogues"]) == {"chatterbot", "chatterbot-chinese"}
