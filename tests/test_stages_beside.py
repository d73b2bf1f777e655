"""A stage in a process beside another: it is done at the end of the context, and stopped with it."""

import dataclasses
import json
import time

import jax
import pytest
import tiny

from gptjax.runs import stage_done
from gptjax.stages import beside as module
from gptjax.stages.beside import LOG, beside

PRETRAIN = "gptjax.stages.pretrain"


def shortened(folder, steps):
    """The pretraining of the tiny road."""
    return dataclasses.replace(tiny.config(tiny.write_data(folder / "data")).pretrain, steps=steps)


@pytest.mark.slow
def test_a_stage_runs_beside_the_body_and_says_so_in_its_log(tmp_path, capsys):
    config = shortened(tmp_path, 2)
    with beside(PRETRAIN, config, tmp_path / "other"):
        pass
    assert stage_done(tmp_path / "other")
    assert str(tmp_path / "other" / LOG) in capsys.readouterr().out
    assert "pretrain 2/2" in (tmp_path / "other" / LOG).read_text("utf-8")


@pytest.mark.slow
def test_a_body_that_fails_lets_the_stage_save_and_stop(tmp_path):
    config, folder = shortened(tmp_path, 100_000), tmp_path / "other"
    with pytest.raises(KeyboardInterrupt), beside(PRETRAIN, config, folder):
        while not (folder / "metrics.jsonl").exists():
            time.sleep(0.1)
        raise KeyboardInterrupt
    assert not stage_done(folder)
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    saved = [int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
    assert max(saved) >= max(steps) - 1 > 0


def test_an_accelerator_is_left_to_one_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with module.beside(PRETRAIN, shortened(tmp_path, 2), tmp_path / "other"):
        pass
    assert not (tmp_path / "other").exists()
