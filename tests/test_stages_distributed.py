"""Fine-tuning, reward model and PPO in two processes: what one process says, and one run left behind."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from ppo_case import ROUNDING
from test_sharding_distributed import run_processes

from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages.handover import load_model, save_model
from gptjax.training.metrics import read_metrics

STAGES = ("finetune", "reward", "ppo")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tokenizer):
    """The folders of the runs on four devices, in one process and in two."""
    root = tmp_path_factory.mktemp("stages")
    data, model = tiny.write_data(root / "data"), replace(tiny.MODEL, vocab_size=tokenizer.vocab_size)
    params = jax.jit(ModelDefinition(LanguageModel, model).initialise)(jax.random.key(0))
    save_model(root / "base", "language", model, params, tokenizer)
    script = Path(__file__).parent / "stages_in_processes.py"
    for processes in (1, 2):
        command = (sys.executable, str(script), str(data), str(root / "base"))
        run_processes(root / str(processes), processes, 4 // processes, *command, timeout=900)
    return root / "1", root / "2"


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_log_what_one_does(runs, stage):
    one, two = (read_metrics(run / stage / "metrics.jsonl") for run in runs)
    assert len(one) == len(two) > 0
    for ours, theirs in zip(one, two, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"time", "elapsed", "stage"}:
            # Bits, and differences of numbers that are nearly equal.
            if not name.startswith(("digest/", "self_check/", *ROUNDING)):
                assert theirs[name] == pytest.approx(ours[name], rel=2e-6, abs=2e-6), name


@pytest.mark.slow
def test_two_processes_draw_the_same_replies(runs):
    one, two = (np.load(run / "replies.npy") for run in runs)
    assert one.shape == (8, 6) and (one == two).all()


@pytest.mark.slow
def test_two_processes_hand_over_the_same_models(runs):
    mesh = make_mesh(MeshConfig())
    for stage in STAGES:
        one, two = (load_model(run / stage, mesh).params for run in runs)
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)  # noqa: E731
        jax.tree.map(close, one, two)


@pytest.mark.slow
def test_two_processes_leave_one_run_behind(runs):
    one, two = (
        {path.relative_to(run) for path in run.rglob("*") if path.is_file() and "runs" not in path.parts}
        for run in runs
    )
    stable = {path for path in one if path.suffix in (".json", ".jsonl", ".model", ".npy", ".txt")}
    stable = {path for path in stable if "checkpoints" not in path.parts and ".launch" not in path.parts}
    assert stable <= two
    assert not [path for path in two if path.suffix in (".partial", ".tmp")]
    for stage in STAGES:
        steps = [row["step"] for row in read_metrics(runs[1] / stage / "metrics.jsonl")]
        assert steps == list(range(1, len(steps) + 1))
        assert (runs[1] / stage / "environment.txt").read_text().count("command: ") == 1
    texts = [
        [{key: row[key] for key in ("prompt", "reference", "policy")} for row in _rows(run / "ppo")]
        for run in runs
    ]
    assert texts[0] == texts[1] and len(texts[0]) == 4
    assert _rows(runs[0] / "finetune") == _rows(runs[1] / "finetune")


def _rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text("utf-8").splitlines()]
