"""Every stage, killed and started again by the same command, ends with the bits of an undisturbed run."""

import dataclasses
import json
import os
import random
import shutil
import time
from pathlib import Path
from signal import SIGKILL, SIGTERM

import jax
import numpy as np
import pytest
import stage_driver
import tiny
from orbax.checkpoint import v1 as ocp

from gptjax.config import ConfigError, to_json
from gptjax.data.corpora import read_documents
from gptjax.data.tokenizers import Tokenizer
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages import pretrain
from gptjax.stages.handover import load_model
from gptjax.stages.road import stage_configs
from gptjax.stages.tracking import TrackingConfig
from gptjax.training.loop import RESUBMIT
from gptjax.training.metrics import read_metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.fault(name="kill"),
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
]

CACHE = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])  # what one module has compiled others need not
# When each stage dies; after these it dies once more, at a random moment.
DEATHS = {
    "pretrain": [("metrics", 2), ("saving", 2)],  # the first before there is a checkpoint
    "finetune": [("saving", 2)],
    "reward": [("metrics", 7), ("handover", 1)],
    "ppo": [("saving", 2)],
}


class Road:
    """The four stages, run undisturbed, each from the one before it."""

    def __init__(self, root: Path):
        self.root = root
        stages = stage_configs(tiny.config(tiny.write_data(root / "data")), root)
        self.configs = {name: stages[name][1] for name in DEATHS}
        tracking = TrackingConfig(every=4, replies=True, gold=str(root / "reward"))
        self.configs["ppo"] = dataclasses.replace(self.configs["ppo"], tracking=tracking)
        for name in DEATHS:
            self.run(name, root / name, expect=0)

    def start(self, name, folder, die=None):
        return stage_driver.start(to_json(self.configs[name]), folder, CACHE, die)

    def run(self, name, folder, *, expect, die=None):
        """Runs a stage to its end or death and checks the exit code; the log tells why it is another."""
        process = self.start(name, folder, die)
        process.join()
        assert process.exitcode == expect, Path(f"{folder}.log").read_text("utf-8")[-3000:]


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    return Road(tmp_path_factory.mktemp("road"))


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of a stored tree, by its path in the tree."""
    read = ocp.load if path.name == "params" else ocp.load_checkpointables
    leaves = jax.tree_util.tree_leaves_with_path(read(path))
    return {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in leaves}


def assert_same_run(one: Path, other: Path) -> None:
    """The same parameters, last training state, metrics and figures, bit for bit; only times may differ."""
    last = max(int(folder.name) for folder in (one / "checkpoints").iterdir())
    for part in ("model/params", f"checkpoints/{last}"):
        expected, got = arrays(one / part), arrays(other / part)
        assert expected.keys() == got.keys()
        for name, array in expected.items():
            assert array.tobytes() == got[name].tobytes(), f"{part}: {name} differs"
    lines = [
        [row | {"time": 0, "elapsed": 0} for row in read_metrics(run / "metrics.jsonl")]
        for run in (one, other)
    ]
    assert lines[0] == lines[1]
    figures = [json.loads((run / "done.json").read_text("utf-8"))["heldout"] for run in (one, other)]
    assert figures[0] == figures[1]


@pytest.mark.parametrize("name", DEATHS)
def test_a_killed_stage_ends_with_the_same_bits(road, name):
    folder = road.root / f"{name}_killed"
    for moment, count in DEATHS[name]:
        started = time.monotonic()
        road.run(name, folder, die=(moment, count, SIGKILL), expect=-SIGKILL)
        assert not (folder / "done.json").exists()
    delay = random.uniform(0, 1.5) * (time.monotonic() - started)
    process = road.start(name, folder)
    process.join(delay)
    process.kill()
    process.join()
    print(f"{name}: killed {delay:.3f} s after its start; exit code {process.exitcode}")
    road.run(name, folder, expect=0)
    assert "resumed at step" in Path(f"{folder}.log").read_text("utf-8")
    assert_same_run(road.root / name, folder)


@pytest.fixture(scope="module")
def stopped(road):
    """Pretraining that got SIGTERM when it logged its fourth step, and so saved and left."""
    folder = road.root / "stopped"
    road.run("pretrain", folder, die=("metrics", 4, SIGTERM), expect=RESUBMIT)
    return folder


def test_a_finished_stage_is_not_run_again(road):
    before = (road.root / "pretrain" / "done.json").stat().st_mtime_ns
    road.run("pretrain", road.root / "pretrain", expect=0)
    assert "already done" in Path(f"{road.root / 'pretrain'}.log").read_text("utf-8")
    assert (road.root / "pretrain" / "done.json").stat().st_mtime_ns == before


def test_a_changed_configuration_is_refused_naming_the_difference(road, stopped):
    changed = dataclasses.replace(road.configs["pretrain"], steps=99, seed=1)
    with pytest.raises(ConfigError, match=r"steps was 12, is 99; seed was 0, is 1"):
        pretrain.run(changed, stopped)


def other_tokenizer() -> Tokenizer:
    return Tokenizer.train((d.text for d in read_documents("pydoc")[:10]), vocab_size=384)


def test_a_checkpoint_of_another_tokenizer_is_refused_naming_its_hash(road, stopped):
    folder = Path(shutil.copytree(stopped, road.root / "swapped"))
    original, other = Tokenizer.load(folder / "tokenizer.model"), other_tokenizer()
    other.save(folder / "tokenizer.model")
    message = rf"written with tokenizer {original.hash[:16]}\.\.\., but this run has {other.hash[:16]}"
    with pytest.raises(ConfigError, match=message):
        pretrain.run(road.configs["pretrain"], folder)


def test_a_model_beside_another_tokenizer_is_refused_naming_its_hash(road):
    folder = road.root / "mixed_up"
    shutil.copytree(road.root / "pretrain" / "model", folder / "model")
    original, other = Tokenizer.load(folder / "model" / "tokenizer.model"), other_tokenizer()
    other.save(folder / "model" / "tokenizer.model")
    with pytest.raises(ConfigError, match=f"hash {other.hash[:16]}.*trained with {original.hash[:16]}"):
        load_model(folder, make_mesh(MeshConfig()))
