"""The loop: it resumes bit for bit, stops cleanly on SIGTERM, and gives up on numbers that are not finite."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.training.checkpoint import SaveFailed
from gptjax.training.events import read_events
from gptjax.training.goodput import CAUSES, TRAINING
from gptjax.training.loop import Checkpoints, LoopSettings, TrainingStopped, run_loop
from gptjax.training.metrics import read_metrics
from gptjax.training.optimizers import OptimizerConfig, make_optimizer
from gptjax.training.step import TrainState, make_train_step

AXES = {"w": ("embed", "mlp")}
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=0.05), 9, AXES)


def squares(params, batch, total, key):
    # The noise shows whether a resumed run draws the same random numbers.
    noise = jax.random.normal(key, batch["y"].shape)
    return ((batch["x"] @ params["w"] - batch["y"] - noise) ** 2).sum() / total, {"noise": noise.sum()}


@pytest.fixture(scope="module")
def step():
    return jax.jit(make_train_step(squares, lambda batch: jnp.float32(8), OPTIMIZER), donate_argnums=0)


def fresh_state():
    return TrainState.create({"w": jnp.full((3, 2), 0.3)}, OPTIMIZER)


def batch_at(index):
    rng = np.random.default_rng(index)
    return {"x": rng.normal(size=(8, 3)).astype(np.float32), "y": rng.normal(size=(8, 2)).astype(np.float32)}


def terminated_at(number):
    """Batches; while the one of step `number` is fetched, the process is told to stop."""

    def batches(index):
        if index == number - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch_at(index)

    return batches


def poisoned_at(*numbers):
    def batches(index):
        batch = batch_at(index)
        return batch | {"y": batch["y"] * np.float32(np.nan)} if index + 1 in numbers else batch

    return batches


def train(folder, step, batches=batch_at, steps=9, save_every=4, evaluate=None, eval_every=0, updates=1):
    settings = LoopSettings(
        stage="fit",
        folder=folder,
        steps=steps,
        save_every=save_every,
        eval_every=eval_every,
        identity={"data": "a"},
        tokens_per_step=8,
        flops_per_token=1.0,
        updates=updates,
    )
    return run_loop(fresh_state(), step, batches, jax.random.key(3), settings, evaluate)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, step):
    """(final state, metrics lines without their times)."""
    folder = tmp_path_factory.mktemp("whole")
    return train(folder, step), lines(folder)


def lines(folder):
    return [
        {k: v for k, v in row.items() if k not in ("time", "elapsed")}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


def assert_same_run(state, folder, uninterrupted):
    expected_state, expected_lines = uninterrupted
    jax.tree.map(np.testing.assert_array_equal, state, expected_state)
    assert lines(folder) == expected_lines


def test_every_step_is_logged_once(uninterrupted):
    state, rows = uninterrupted
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert int(state.step) == 9
    assert {"stage", "noise", "gradient_norm", "skipped"} <= set(rows[0])


@pytest.mark.fault(name="sigterm")
@pytest.mark.parametrize("number", [1, 3, 9])
def test_sigterm_saves_and_the_resumed_run_is_the_same(tmp_path, step, uninterrupted, capsys, number):
    """Also at the last step: whatever would follow the loop must not start after the signal."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path, step, terminated_at(number))
    assert stopped.value.code == 75
    assert f"fit: saved at step {number} after SIGTERM; run again to resume" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == before
    assert_same_run(train(tmp_path, step), tmp_path, uninterrupted)
    assert f"fit: resumed at step {number} of 9" in capsys.readouterr().out


@pytest.mark.fault(name="kill")
def test_a_crash_resumes_from_the_last_checkpoint(tmp_path, step, uninterrupted):
    def crashing(index):
        if index == 6:
            raise RuntimeError("the disk is gone")
        return batch_at(index)

    with pytest.raises(RuntimeError, match="the disk is gone"):
        train(tmp_path, step, crashing)
    fetched = []
    state = train(tmp_path, step, lambda index: fetched.append(index) or batch_at(index))
    assert fetched == [4, 5, 6, 7, 8]
    assert_same_run(state, tmp_path, uninterrupted)


def test_a_finished_run_is_not_run_again(tmp_path, step, uninterrupted):
    train(tmp_path, step)
    again = train(tmp_path, step, lambda index: pytest.fail("no batch is needed"))
    assert_same_run(again, tmp_path, uninterrupted)


@pytest.mark.fault(name="nan")
def test_three_bad_steps_in_a_row_stop_the_run(tmp_path, step):
    with pytest.raises(
        TrainingStopped, match="fit stopped at step 6: .* not finite 3 times in a row"
    ) as stopped:
        train(tmp_path, step, poisoned_at(4, 5, 6))
    assert stopped.value.exit_code == 70
    assert [row["skipped"] for row in lines(tmp_path)] == [0, 0, 0, 1, 2, 3]


@pytest.mark.fault(name="nan")
def test_two_bad_steps_do_not(tmp_path, step):
    state = train(tmp_path, step, poisoned_at(3, 4, 6, 7))
    assert int(state.step) == 9
    assert [row["skipped"] for row in lines(tmp_path)] == [0, 0, 1, 2, 0, 1, 2, 0, 0]


def test_evaluation_joins_the_metrics_of_its_steps(tmp_path, step):
    def evaluate(state):
        return {"heldout": state.step * 10}

    train(tmp_path, step, evaluate=evaluate, eval_every=4)
    heldout = {row["step"]: row["heldout"] for row in lines(tmp_path) if "heldout" in row}
    assert heldout == {4: 40, 8: 80, 9: 90}


@pytest.mark.fault(name="nan")
def test_skipped_steps_are_noted_with_their_batches(tmp_path, step, capsys):
    with pytest.raises(TrainingStopped, match=r"such as --rewind-to 3 --skip-batches 4:7"):
        train(tmp_path, step, poisoned_at(2, 4, 5, 6))
    skipped = [event for event in read_events(tmp_path) if event["event"] == "skipped"]
    assert [(event["batch"], event["in_a_row"]) for event in skipped] == [(2, 1), (4, 1), (5, 2), (6, 3)]
    assert "fit: step 2 changed nothing (gradient norm nan), batch 2" in capsys.readouterr().out


def test_a_step_of_several_updates_is_left_out_by_itself(tmp_path, step, capsys):
    """Three updates in a row were left out in two steps, the third and the fourth."""

    def spoilt(state, batch, key):
        state, metrics = step(state, batch, key)
        number = int(state.step)
        return state, metrics | {"skipped": jnp.float32({3: 1, 4: 3}.get(number, 0))}

    with pytest.raises(TrainingStopped, match=r"such as --rewind-to 2 --skip-batches 3:5"):
        train(tmp_path, spoilt, updates=2)
    assert "fit: step 3 left an update out (gradient norm" in capsys.readouterr().out


def test_updates_left_out_in_several_steps_are_no_series_unless_they_go_on(tmp_path, step):
    """One update of each of the steps 2 to 4, then three of the fifth, which may go on from the fourth."""

    def spoilt(state, batch, key):
        state, metrics = step(state, batch, key)
        return state, metrics | {"skipped": jnp.float32({2: 1, 3: 1, 4: 1, 5: 3}.get(int(state.step), 0))}

    with pytest.raises(TrainingStopped, match=r"such as --rewind-to 3 --skip-batches 4:6"):
        train(tmp_path, spoilt, updates=8)


def test_events_say_where_the_time_went(tmp_path, step):
    with pytest.raises(SystemExit):
        train(tmp_path, step, terminated_at(5))
    train(tmp_path, step)
    events = read_events(tmp_path)
    kinds = [(event["event"], event["step"]) for event in events]
    assert kinds == [("start", 0), ("saved", 4), ("saved", 5), ("start", 5), ("saved", 8), ("saved", 9)]
    last, first = events[-1], events[0]
    assert set(last["seconds"]) == {TRAINING, *CAUSES} and 0 < last["goodput"] < 1
    whole = sum(last["seconds"].values())
    assert whole == pytest.approx(last["time"] - first["began"], abs=0.1)
    assert last["seconds"]["saving"] > 0 and last["seconds"]["starting"] > 0 and last["seconds"]["down"] > 0


@pytest.mark.fault(name="disk")
def test_two_failed_saves_stop_the_run_and_the_next_start_goes_on(tmp_path, step, monkeypatch, uninterrupted):
    """The disk is full from step 5 on."""
    enough = Checkpoints.save

    def save(self, number, state):
        if number <= 4:
            return enough(self, number, state)
        self.settle()
        return self._fail(number, "No space left on device")

    monkeypatch.setattr(Checkpoints, "save", save)
    with pytest.raises(SaveFailed, match="step 4 is intact") as failed:
        train(tmp_path, step, save_every=2)
    assert failed.value.exit_code == 74
    monkeypatch.undo()
    assert_same_run(train(tmp_path, step, save_every=2), tmp_path, uninterrupted)


@pytest.mark.fault(name="disk")
def test_a_last_checkpoint_that_fails_is_tried_again_at_once(tmp_path, step, monkeypatch, uninterrupted):
    tried, enough = [], Checkpoints.save

    def save(self, number, state):
        tried.append(number)
        if len(tried) != 3:
            return enough(self, number, state)
        self.settle()
        return self._fail(number, "a moment of bad luck")

    monkeypatch.setattr(Checkpoints, "save", save)
    assert_same_run(train(tmp_path, step), tmp_path, uninterrupted)
    assert tried == [4, 8, 9, 9]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["8", "9"]


@pytest.mark.fault(name="damage")
def test_a_damaged_checkpoint_costs_one_interval(tmp_path, step, capsys, uninterrupted):
    with pytest.raises(SystemExit):
        train(tmp_path, step, terminated_at(6))
    next((tmp_path / "checkpoints" / "6").rglob("manifest.ocdbt")).unlink()
    assert_same_run(train(tmp_path, step), tmp_path, uninterrupted)
    assert "fit: resumed at step 4 of 9" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "checkpoints-damaged").iterdir()] == ["6"]
    assert "damaged" in [event["event"] for event in read_events(tmp_path)]
