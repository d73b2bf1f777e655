"""The experiments of BERT and GPT-1: two steps of each, on little data."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gptjax.config import load_experiment
from gptjax.data.ratings import load_ratings
from gptjax.runs import read_done
from gptjax.stages import classify, masked, pretrain

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


@pytest.mark.parametrize(
    "file",
    sorted(str(f.relative_to(ROOT)) for p in BASES for f in (ROOT / p).glob("*.py") if f.stem != "pretrain"),
)
def test_two_steps(bases, tmp_path, file):
    config, paper = load_experiment(ROOT / file), Path(file).parent.name
    assert config.base == f"runs/{paper}/pretrain"
    classify.run(
        replace(config, base=str(bases / paper), source=str(bases / "texts.jsonl"), **SMALL), tmp_path / "run"
    )
    assert read_done(tmp_path / "run")["heldout"]["examples"] > 5


def test_the_arms_of_gpt1_are_the_papers_ablation():
    arms = {file.stem: load_experiment(file) for file in (ROOT / "gpt1").glob("finetune*.py")}
    assert {(arm.fresh, arm.lm_weight) for arm in arms.values()} == {
        (f, w) for f in (True, False) for w in (0.5, 0.0)
    }
    assert len({repr(replace(arm, fresh=False, lm_weight=0.0)) for arm in arms.values()}) == 1
