"""The arms of HH take two steps in a small size, and stand side by side at one budget."""

import dataclasses
from pathlib import Path

import jax
import pytest
import tiny

from experiments.external_data import argument_pairs, external
from gptjax.config import ConfigError, load_experiment
from gptjax.data.corpora import read_documents
from gptjax.data.preferences import read_preferences
from gptjax.data.tokenizers import Tokenizer
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel, ScalarModel
from gptjax.runs import read_done, write_jsonl_atomic
from gptjax.stages import online
from gptjax.stages.handover import save_model
from gptjax.stages.reward_data import read_groups

FOLDER = Path(__file__).parents[1] / "experiments" / "hh"


def small(config, data):
    """The arm with few rankings and iterations, on a little of the data."""
    sampling = dataclasses.replace(config.ppo.sampling, max_new_tokens=4)
    little = {"prompts": str(data / "dialogues.jsonl"), "prompt_length": 64, "sampling": sampling}
    little |= {"iterations": 1, "batch_size": 4, "eval_prompts": 4}
    return dataclasses.replace(
        config,
        rounds=2,
        prompts=8,
        reward=dataclasses.replace(config.reward, batch_size=4, epochs=1),
        ppo=dataclasses.replace(config.ppo, **little),
    )


def test_the_control_differs_by_where_its_rankings_come_from():
    rounds, control = (load_experiment(FOLDER / f"{name}.py") for name in ("online", "static"))
    assert dataclasses.replace(control, static=False) == rounds and control.static
    assert sum(r.prompts for r in online.schedule(rounds)) == online.schedule(control)[0].prompts


@pytest.mark.slow
def test_both_arms_run(tmp_path, monkeypatch):
    pytest.importorskip("vaderSentiment", reason="vaderSentiment is not installed (gptjax[data])")
    monkeypatch.chdir(tmp_path)
    data = tiny.write_data(tmp_path / "data")
    tokenizer = Tokenizer.train((d.text for d in read_documents("pydoc")[:10]), vocab_size=384)
    for stage, kind, module in (("finetune", "language", LanguageModel), ("reward", "scalar", ScalarModel)):
        params = jax.jit(ModelDefinition(module, tiny.MODEL).initialise)(jax.random.key(0))
        save_model(tmp_path / "runs" / "quickstart" / stage, kind, tiny.MODEL, params, tokenizer)
    online.run(small(load_experiment(FOLDER / "static.py"), data), Path("runs/hh/static"))
    arm = small(load_experiment(FOLDER / "online.py"), data)
    online.run(dataclasses.replace(arm, rivals={"static": "runs/hh/static"}), Path("runs/hh/online"))
    rounds, control = read_done("runs/hh/online"), read_done("runs/hh/static")
    assert (rounds["labels"], rounds["pairs"]) == (control["labels"], control["pairs"]) == (16, 96)
    assert "static" in rounds["heldout"]["lead"]["gold"]["round-2"]


def test_teacher_and_judge_share_no_ranking():
    run, half = (load_experiment(FOLDER / f"{name}.py") for name in ("robustness", "first_half"))
    assert (run.reward, run.tracking.gold) == ("runs/hh/first_half", "runs/hh/second_half")
    texts = {}
    for name in ("first", "second"):
        groups, _ = read_groups(dataclasses.replace(half, half=name, groups=60))
        texts[name] = {text for group in groups for text in group.completions}
    assert min(map(len, texts.values())) > 400 and not texts["first"] & texts["second"]


def test_arguments_are_pairs_in_the_order_of_the_votes(tmp_path):
    try:
        folder = Path(external("preferences/ukpconvarg1/strict_pairs"))
    except ConfigError as error:
        pytest.skip(str(error))
    rows = argument_pairs(folder)
    assert len(rows) == 6251 and len({row["prompt"] for row in rows}) == 32
    write_jsonl_atomic(tmp_path / "arguments.jsonl", rows)
    groups = read_preferences(tmp_path / "arguments.jsonl")
    assert [group.completions for group in groups] == [[row["chosen"], row["rejected"]] for row in rows]
    longer = sum(len(row["chosen"]) > len(row["rejected"]) for row in rows) / len(rows)
    assert 0.6 < longer < 0.8, "people prefer the longer argument more often than not"
