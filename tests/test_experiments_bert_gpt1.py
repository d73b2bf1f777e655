"""The experiments of BERT and GPT-1: two steps of each, on little data."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gptjax.config import load_experiment
from gptjax.data.ratings import load_ratings
from gptjax.runs import read_done
from gptjax.stages import classify, masked, pretrain

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1] / "experiments"
BASES = {"bert": masked, "gpt1": pretrain}
SMALL = {"steps": 2, "batch_size": 4, "eval_every": 0}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A folder with the two pretrained models, after two steps on a few rated texts."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [
        json.dumps({"text": rated.text, "label": int(rated.mean > 0)}) + "\n"
        for rated in load_ratings()[:300]
    ]
    (folder / "texts.jsonl").write_text("".join(rows), "utf-8")
    for paper, stage in BASES.items():
        config = load_experiment(ROOT / paper / "pretrain.py")
        model = replace(config.model, vocab_size=400, width=16, layers=1, loop="scan")
        corpora = {str(folder / "texts.jsonl"): 1.0}
        stage.run(replace(config, model=model, corpora=corpora, **SMALL), folder / paper)
    return folder


ARMS = {
    "bert": ("sentiment", {"sentiment_untrained": {"fresh": True}}),
    "gpt1": (
        "finetune",
        {
            "finetune_no_language": {"lm_weight": 0.0},
            "finetune_untrained": {"fresh": True},
            "finetune_untrained_no_language": {"fresh": True, "lm_weight": 0.0},
        },
    ),
}


@pytest.mark.parametrize(
    ("paper", "arm"), [(paper, arm) for paper, (base, others) in ARMS.items() for arm in (base, *others)]
)
def test_two_steps(bases, tmp_path, paper, arm):
    config = load_experiment(ROOT / paper / f"{arm}.py")
    assert config.base == f"runs/{paper}/pretrain"
    small = {"base": str(bases / paper), "source": str(bases / "texts.jsonl")}
    classify.run(replace(config, **small, **SMALL), tmp_path / "run")
    assert read_done(tmp_path / "run")["heldout"]["examples"] > 5


@pytest.mark.parametrize("paper", BASES)
def test_the_other_arms_are_their_difference(paper):
    base, others = ARMS[paper]
    lm_weight = load_experiment(ROOT / paper / f"{base}.py").lm_weight
    assert lm_weight == (0.5 if paper == "gpt1" else 0.0)
    files = {file.stem for file in (ROOT / paper).glob("*.py")} - {"sweep"}
    assert files == {"pretrain", base, *others}
    for name, changes in others.items():
        arm = load_experiment(ROOT / paper / f"{name}.py")
        assert arm == replace(load_experiment(ROOT / paper / f"{base}.py"), **changes)
