"""The experiment on instructions, two steps of a tiny model: losses before and after, replies written."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from gptjax.config import ConfigError, load_experiment
from gptjax.data.corpora import read_documents
from gptjax.data.tokenizers import Tokenizer
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.models.transformer import DecoderConfig
from gptjax.stages import finetune
from gptjax.stages.handover import save_model

pytestmark = pytest.mark.slow

FILE = Path(__file__).parents[1] / "experiments/alpaca/instructions.py"


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_two_steps(tmp_path):
    try:
        config = load_experiment(FILE)
    except ConfigError as error:
        pytest.skip(str(error))
    (source,) = config.dialogues
    tasks = Path(source).read_text("utf-8").splitlines(keepends=True)
    short = [row for row in tasks if len(row) < 500][:40]
    (tmp_path / "tasks.jsonl").write_text("".join(short), "utf-8")
    tokenizer = Tokenizer.train([d.text for d in read_documents("pydoc")[:20]], 512)
    model = DecoderConfig(vocab_size=512, context_length=512, width=16, layers=1, heads=2)
    params = jax.jit(ModelDefinition(LanguageModel, model).initialise)(jax.random.key(0))
    save_model(tmp_path / "base", "language", model, params, tokenizer)
    small = {"base": str(tmp_path / "base"), "dialogues": {str(tmp_path / "tasks.jsonl"): 1.0}}
    config = dataclasses.replace(config, **small, length=512, steps=2, samples=2)
    finetune.run(config, tmp_path / "run")
    done = json.loads((tmp_path / "run" / "done.json").read_text())
    (before,), (after,) = done["heldout_before"].values(), done["heldout"].values()
    assert before != after and before == pytest.approx(6.24, abs=0.1)  # ln 512
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(set(row) == {"prompt", "data", "before", "after"} for row in rows)
    assert rows[0]["prompt"].endswith("### Response:")
