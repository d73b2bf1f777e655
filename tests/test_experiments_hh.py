"""The arms of HH take two steps in a small size, and stand side by side at one budget."""

import dataclasses
from pathlib import Path

import jax
import pytest
import tiny

from gptjax.config import load_experiment
from gptjax.data.corpora import read_documents
from gptjax.data.tokenizers import Tokenizer
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel, ScalarModel
from gptjax.runs import read_done
from gptjax.stages import online
from gptjax.stages.handover import save_model

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
