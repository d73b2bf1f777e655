"""Clusters are joined where they are, and nowhere else; real processes train as one does."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gptjax.config import ConfigError
from gptjax.environment import git_revision
from gptjax.sharding import distributed
from gptjax.sharding.distributed import ClusterUnreachable, find_cluster, join_cluster

ROOT = Path(__file__).parent.parent
NAMED = {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"},  # the batch script itself
        SLURM | {"SLURM_NTASKS": "1"},  # a run of a sweep
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        NAMED | {"GPTJAX_DISTRIBUTED": "0"},
    ],
)
def test_one_process_stays_alone(environment, monkeypatch):
    monkeypatch.setattr("jax.distributed.initialize", lambda **_: pytest.fail("it joined"))
    join_cluster(environment)


@pytest.mark.parametrize(
    ("environment", "arguments"),
    [
        (NAMED, {"coordinator_address": "h:1", "num_processes": 4, "process_id": 3}),
        (SLURM, {}),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "a"}, {}),
        ({"GPTJAX_DISTRIBUTED": "1"}, {}),
    ],
)
def test_a_cluster_is_found(environment, arguments, monkeypatch):
    assert find_cluster(environment) == arguments
    joined = {}
    monkeypatch.setattr("jax.distributed.initialize", lambda **given: joined.update(given))
    join_cluster(environment | {"GPTJAX_HEARTBEAT_SECONDS": "10"})
    own = {"cluster_detection_method": "deactivate"} if arguments else {}
    assert joined == arguments | own | {"heartbeat_timeout_seconds": 10}


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "h:1"}, "JAX_COORDINATOR_ADDRESS is set, but JAX_NUM_PROCESSES is not"),
        (NAMED | {"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID=4 is not a process of JAX_NUM_PROCESSES=4"),
        (NAMED | {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two is not a whole number"),
        ({"GPTJAX_DISTRIBUTED": "yes"}, "GPTJAX_DISTRIBUTED=yes is unknown"),
    ],
)
def test_a_cluster_that_is_described_badly_is_refused(environment, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        find_cluster(environment)


def test_what_jax_says_becomes_a_sentence(monkeypatch):
    def fail(error):
        def initialize(**_):
            raise error

        monkeypatch.setattr("jax.distributed.initialize", initialize)

    fail(ValueError("coordinator_address should be defined."))
    with pytest.raises(ConfigError, match="asks for a cluster, but JAX finds none here"):
        join_cluster({"GPTJAX_DISTRIBUTED": "1"})
    fail(RuntimeError("DEADLINE_EXCEEDED: nobody\nat home"))
    sentence = r"process 3 of 4 could not join the others at h:1 \(DEADLINE_EXCEEDED: nobody\)"
    with pytest.raises(ClusterUnreachable, match=sentence) as raised:
        join_cluster(NAMED)
    assert raised.value.exit_code == 75


def test_one_process_waits_for_nobody():
    distributed.wait_for_all("here")


def test_a_shipped_tree_is_told_its_revision(monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *a, **_: subprocess.CompletedProcess(a, 128, "", ""))
    assert git_revision() == "not a git checkout"
    monkeypatch.setenv("GPTJAX_REVISION", "abc+changes")
    assert git_revision() == "abc+changes"


EXPERIMENT = '''"""Processes."""
from gptjax.models.transformer import DecoderConfig
from gptjax.sharding.mesh import MeshConfig
from gptjax.stages.pretrain import PretrainConfig

def config():
    return PretrainConfig(
        model=DecoderConfig(vocab_size=512, context_length=32, width=16, layers=2, heads=2),
        corpora={"pydoc": 1.0},
        mesh=MeshConfig(data=2, fsdp=4),
        length=32, batch_size=16, steps=6, save_every=3, eval_every=3, heldout_bytes=2000, compressors=False,
    )
'''
# What every process holds of the global batches: mesh, step and place of the row -> the row.
ROWS = """
import json
import numpy as np
from gptjax.sharding.distributed import join_cluster
join_cluster()
from gptjax.data.mixture import Mixture
from gptjax.sharding.mesh import MeshConfig, make_mesh, place
source = np.arange(100)[:, None] * np.ones((1, 2), np.int64)
mixture = Mixture({"a": source, "b": source + 1000}, {"a": 0.7, "b": 0.3}, 16, 0)
held = {}
for mesh in (MeshConfig(data=8), MeshConfig(data=2, tensor=4), MeshConfig(tensor=8)):
    for step in (0, 5):
        batch = place(mixture.batch_at(step), make_mesh(mesh))
        assert batch.shape == (16, 2)
        for shard in batch.addressable_shards:
            first = shard.index[0].start or 0
            rows = np.asarray(shard.data)[:, 0].tolist()
            held |= {f"{mesh.data}/{step}/{first + i}": row for i, row in enumerate(rows)}
print("held", json.dumps(held))
"""


def run_processes(folder, processes, devices, *command, timeout=300):
    """Runs a command in several processes of some devices each; what each printed."""
    words = [
        "local",
        "--processes",
        str(processes),
        "--devices",
        str(devices),
        "--retries",
        "0",
        "--",
        *command,
    ]
    folder.mkdir(exist_ok=True)
    # XLA cuts its loops by the number of threads, which is by default that of the devices in a process.
    settings = {"PYTHONPATH": str(ROOT), "NPROC": "8"}
    done = subprocess.run(
        [sys.executable, "-m", "gptjax.launching", *words],
        cwd=folder,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    logs = [(folder / f".launch/local/worker-{index}.log").read_text() for index in range(processes)]
    assert done.returncode == 0, done.stderr + "\n".join(logs)
    return logs


@pytest.mark.slow
def test_any_number_of_processes_sees_the_same_global_batches(tmp_path):
    (tmp_path / "rows.py").write_text(ROWS)
    seen = {}
    for processes in (1, 2, 4):
        folder = tmp_path / str(processes)
        logs = run_processes(folder, processes, 8 // processes, sys.executable, "../rows.py")
        parts = [json.loads(log.rpartition("held ")[2]) for log in logs]
        seen[processes] = {place: row for part in parts for place, row in part.items()}
        assert all(seen[processes][place] == row for part in parts for place, row in part.items())
    assert len(seen[1]) == 3 * 2 * 16 and seen[1] == seen[2] == seen[4]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The losses, figures and parameters of one training, on 8 devices in 1, 2 and 4 processes."""
    found = {}
    for processes in (1, 2, 4):
        folder = tmp_path_factory.mktemp(f"processes-{processes}")
        (folder / "tiny.py").write_text(EXPERIMENT)
        run_processes(
            folder, processes, 8 // processes, sys.executable, "-m", "gptjax.cli", "train", "tiny.py"
        )
        found[processes] = folder / "runs/tiny"
    return found


@pytest.mark.slow
def test_several_processes_train_as_one_does(trained):
    from gptjax.sharding.mesh import MeshConfig, make_mesh
    from gptjax.stages.handover import load_model

    def losses(folder):
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines]

    mesh = make_mesh(MeshConfig())
    expected = load_model(trained[1], mesh)
    for processes in (2, 4):
        assert len(losses(trained[processes])) == 6
        np.testing.assert_allclose(losses(trained[processes]), losses(trained[1]), rtol=2e-6)
        model = load_model(trained[processes], mesh)
        for leaf, other in zip(_leaves(model.params), _leaves(expected.params), strict=True):
            np.testing.assert_allclose(leaf, other, rtol=2e-6, atol=2e-6)


@pytest.mark.slow
def test_several_processes_leave_one_run_behind(trained):
    names = {
        path.relative_to(trained[1]) for path in trained[1].rglob("*") if "checkpoints" not in path.parts
    }
    stable = {path for path in names if path.suffix in (".json", ".npy", ".model", ".txt")}
    for processes in (2, 4):
        folder = trained[processes]
        assert all((folder / path).exists() for path in stable)
        assert not list(folder.rglob("*.partial")) + list(folder.rglob("*.tmp"))
        assert (folder / "environment.txt").read_text().count("command: ") == 1
        assert f"processes: {processes}" in (folder / "environment.txt").read_text()
        for path in stable - {Path("environment.txt"), Path("done.json"), Path("model/model.json")}:
            if "params" not in path.parts:
                assert (folder / path).read_bytes() == (trained[1] / path).read_bytes(), path


@pytest.mark.slow
def test_a_mesh_that_leaves_a_process_idle_is_refused(tmp_path):
    (tmp_path / "tiny.py").write_text(EXPERIMENT.replace("data=2, fsdp=4", "data=2"))
    with pytest.raises(AssertionError, match="leaves 1 of 2 processes without one: raise mesh.data"):
        run_processes(tmp_path, 2, 2, sys.executable, "-m", "gptjax.cli", "train", "tiny.py")


def _leaves(tree):
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
