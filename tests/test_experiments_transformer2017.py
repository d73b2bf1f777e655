"""The experiments with the Transformer of 2017: two steps of each arm."""

import gzip
from dataclasses import replace
from pathlib import Path

import pytest
from test_experiments import load

from gptjax.runs import read_done
from gptjax.stages import translate

pytestmark = pytest.mark.slow

FOLDER = "experiments/transformer2017"
ARMS = [f"{FOLDER}/{name}.py" for name in ("no_smoothing", "translate")]
SMALL = {"vocab_size": 1536, "width": 16, "layers": 1, "heads": 2, "mlp_width": None}


def test_the_arms_differ_in_label_smoothing_alone():
    base, ablation = (load(f"{FOLDER}/{name}.py") for name in ("translate", "no_smoothing"))
    assert base.label_smoothing == 0.1
    assert ablation == replace(base, label_smoothing=0.0)


@pytest.mark.parametrize("file", ARMS)
def test_two_steps_on_a_few_hundred_pairs(file, tmp_path, monkeypatch):
    """As far as the evaluation, which tests/test_stages_translate.py runs."""
    pytest.importorskip("sacrebleu", reason="sacrebleu is not installed (pip install gptjax[data])")
    monkeypatch.setattr(translate, "evaluate", lambda *_: {})
    config = load(file)
    first = next(Path(config.pairs).glob("*core*.jsonl.gz"))
    rows = gzip.decompress(first.read_bytes()).splitlines(keepends=True)[::12]
    (tmp_path / "pairs.jsonl").write_bytes(b"".join(rows))
    small = {"steps": 2, "save_every": 1, "eval_every": 0, "lengths": config.lengths[-1:]}
    model = replace(config.model, **SMALL)
    config = replace(config, pairs=str(tmp_path / "pairs.jsonl"), model=model, **small)
    translate.run(config, tmp_path / "run")
    assert read_done(tmp_path / "run")["tokens"] == 2 * config.batch_tokens
