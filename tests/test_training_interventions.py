"""Going back and leaving batches out: what was decided is done again by every later start."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training_loop import OPTIMIZER, batch_at, fresh_state, lines, squares, terminated_at, train

from gptjax.config import ConfigError
from gptjax.training.events import read_events
from gptjax.training.interventions import FILE, batches_left_out, intervene, unfinished_stage
from gptjax.training.step import make_train_step

pytestmark = pytest.mark.fault(name="rewind")


@pytest.fixture(scope="module")
def step():
    return jax.jit(make_train_step(squares, lambda batch: jnp.float32(8), OPTIMIZER), donate_argnums=0)


def kept(folder):
    return sorted(int(path.name) for path in folder.iterdir())


@pytest.fixture
def begun(tmp_path, step):
    """A run with the checkpoints 4 and 6, stopped there."""
    with pytest.raises(SystemExit):
        train(tmp_path, step, terminated_at(6))
    assert kept(tmp_path / "checkpoints") == [4, 6]
    return tmp_path


def by_hand(step, left_out):
    """The state after nine steps of which some only count."""
    state = fresh_state()
    for number in range(1, 10):
        if number in left_out:
            state = dataclasses.replace(state, step=state.step + 1)
        else:
            state, _ = step(state, batch_at(number - 1), jax.random.key(3))
    return state


def test_rewound_with_batches_left_out_and_remembered(begun, step, capsys):
    intervene(begun, 5, "6:8")
    assert kept(begun / "checkpoints") == [4] and kept(begun / "checkpoints-rewound") == [6]
    assert "batches 6 to 7 are left out" in (said := capsys.readouterr().out)
    assert "goes on from step 4" in said
    asked = []
    with pytest.raises(SystemExit):  # stopped before them: a later start must leave them out as well
        train(begun, step, lambda index: asked.append(index + 1) or terminated_at(5)(index))
    state = train(begun, step, lambda index: asked.append(index + 1) or batch_at(index))
    assert asked == [5, 8, 9]
    expected = by_hand(step, {6, 7})
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    rows = {row["step"]: row for row in lines(begun)}
    assert sorted(rows) == list(range(1, 10)) and [n for n in rows if "left_out" in rows[n]] == [6, 7]
    kinds = [event["event"] for event in read_events(begun)]
    assert kinds.count("batches left out") == kinds.count("rewound") == 1


def test_to_the_beginning(begun, step):
    intervene(begun, 0, None)
    assert kept(begun / "checkpoints") == [] and kept(begun / "checkpoints-rewound") == [4, 6]
    jax.tree.map(np.testing.assert_array_equal, train(begun, step), by_hand(step, set()))


@pytest.mark.parametrize(
    ("rewind_to", "skip", "sentence"),
    [
        (3, None, r"no checkpoint of that step or before, but of \[4, 6\]"),
        (None, "6:8", "goes on from step 6 and knows batch 6: go back as well, with --rewind-to 5"),
        (4, "4:8", "goes on from step 4 and knows batch 4"),
        (None, "9:9", "write a:b with 0 < a < b"),
        (None, "8-9", "write a:b"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_moved(begun, rewind_to, skip, sentence):
    with pytest.raises(ConfigError, match=sentence):
        intervene(begun, rewind_to, skip)
    assert kept(begun / "checkpoints") == [4, 6] and not (begun / FILE).exists()
    assert batches_left_out(begun) == set()


def test_the_stage_of_a_road_is_the_one_that_is_not_finished(tmp_path):
    for stage in ("pretrain", "finetune"):
        (tmp_path / stage / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match="unfinished are finetune, pretrain, so name one with --of"):
        unfinished_stage(tmp_path)
    (tmp_path / "pretrain" / "done.json").write_text("{}")
    assert unfinished_stage(tmp_path) == tmp_path / "finetune"
    (tmp_path / "finetune" / "done.json").write_text("{}")
    with pytest.raises(ConfigError, match="there is none"):
        unfinished_stage(tmp_path)
    (tmp_path / "round-1" / "ppo" / "checkpoints").mkdir(parents=True)
    assert (
        unfinished_stage(tmp_path) == tmp_path / "round-1" / "ppo" == unfinished_stage(tmp_path / "round-1")
    )
