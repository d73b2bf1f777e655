"""PPO to the bit: killed in every phase, replayed, and with adapters as the policy."""

import dataclasses
import gc
import json
import shutil
from pathlib import Path
from signal import SIGKILL, SIGTERM

import jax
import numpy as np
import pytest
import stage_driver
import tiny
from test_stages_resume import CACHE, arrays, assert_same_run

from gptjax.config import ConfigError, to_json
from gptjax.data.corpora import read_documents
from gptjax.data.tokenizers import Tokenizer
from gptjax.errors import RESUBMIT
from gptjax.models.functional import ModelDefinition
from gptjax.models.lora import LoraConfig, LoraDefinition
from gptjax.runs import mark_done, open_run
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages.adapters import load_adapters, merged
from gptjax.stages.handover import KINDS, load_model, save_model
from gptjax.stages.ppo import prepare
from gptjax.stages.ppo_iteration import DIGESTS
from gptjax.stages.replay import read_run, replay
from gptjax.stages.tracking import TrackingConfig
from gptjax.training.interventions import intervene
from gptjax.training.metrics import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
LORA = LoraConfig(rank=2, alpha=4.0, targets=("query", "mlp.up"))
# Each in the fifth iteration, after two saves of which the first is whole. An iteration has two passes in two
# minibatches, so 4 of them and 8 updates; each scores twice, the first 5 times more for its self-check.
PHASES = {
    "before the rollout": ("before rollout", 5),
    "after the rollout": ("rollout", 5),
    "in the first iteration's self-check": ("scoring", 5),
    "between the two scorings": ("scoring", 5 + 4 * 2 + 1),
    "before the experience": ("before experience", 5),
    "after the experience": ("experience", 5),
    "before the first minibatch of the second pass": ("before minibatch", 4 * 4 + 3),
    "between the updates of policy and critic": ("update", 4 * 8 + 1),
    "after the first minibatch of the second pass": ("update", 4 * 8 + 6),
    "after the line of metrics": ("metrics", 5),
    "during a save": ("saving", 2),
    "during the handover": ("handover", 1),
}


def write_models(root: Path) -> Path:
    """`root/policy` and `root/reward`, untrained, and the data of a tiny road."""
    tokenizer = Tokenizer.train([d.text for d in read_documents("pydoc")[:20]], tiny.MODEL.vocab_size)
    for seed, (name, kind) in enumerate({"policy": "language", "reward": "scalar"}.items()):
        params = jax.jit(ModelDefinition(KINDS[kind], tiny.MODEL).initialise)(jax.random.key(seed))
        save_model(root / name, kind, tiny.MODEL, params, tokenizer)
    return tiny.write_data(root / "data")


class Runs:
    """PPO on untrained models, run undisturbed."""

    def __init__(self, root: Path):
        self.root = root
        config = tiny.config(write_models(root)).ppo
        places = {"policy": str(root / "policy"), "reward": str(root / "reward")}
        self.config = dataclasses.replace(config, iterations=5, epochs=2, **places)
        self.adapted = dataclasses.replace(self.config, lora=LORA, ptx_coef=0.0)

    def run(self, name, *, expect=0, die=None, config=None):
        process = stage_driver.start(to_json(config or self.config), self.root / name, CACHE, die)
        process.join()
        assert process.exitcode == expect, self.log(name)[-3000:]
        return self.root / name

    def replay(self, name, step):
        """Exit code of `gptjax replay`, and what it printed."""
        before = len(self.log(name))
        arguments = ["replay", str(self.root / name), "--step", str(step)]
        process = stage_driver.command(arguments, self.root / name, CACHE)
        process.join()
        return process.exitcode, self.log(name)[before:]

    def log(self, name):
        return Path(f"{self.root / name}.log").read_text("utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("exactness"))


@pytest.fixture(scope="module")
def whole(runs):
    return runs.run("whole")


def digests_of(run: Path) -> list[list[int]]:
    return [[row[digest] for digest in DIGESTS] for row in read_metrics(run / "metrics.jsonl")]


@pytest.fixture(scope="module")
def adapted(runs):
    return runs.run("adapted", config=runs.adapted)


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_killed_in_any_phase_it_ends_with_the_same_digests(runs, whole, phase):
    name = phase.replace(" ", "_")
    runs.run(name, die=(*PHASES[phase], SIGKILL), expect=-SIGKILL)
    assert not (runs.root / name / "done.json").exists()
    runs.run(name)
    first = phase == "in the first iteration's self-check"
    assert first or "resumed at step" in runs.log(name)
    checked = "self-check passed at the start from iteration 5" in runs.log(name)
    assert checked == ("resumed at step 4" in runs.log(name))
    assert_same_run(whole, runs.root / name)
    rows = read_metrics(whole / "metrics.jsonl")
    assert all(set(DIGESTS) <= set(row) for row in rows)
    assert len({row[digest] for row in rows for digest in DIGESTS}) == 5 * len(rows)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "start"), [(5, 4), (2, 0)])
def test_a_logged_step_is_replayed(runs, whole, step, start):
    kept = sorted(int(saved.name) for saved in (whole / "checkpoints").iterdir())
    assert kept == [4, 5]
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    code, printed = runs.replay("whole", step)
    assert code == 0, printed
    assert f"from step {start}, {step - start} to run" in printed
    assert f"step {step} of {step} is equal (digest/rollout, digest/experience" in printed
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.fault(name="rewind")
def test_an_iteration_that_is_left_out_changes_nothing_but_the_count(runs):
    """Of PPO a batch is an iteration's prompts: nothing is drawn for them."""
    folder = runs.run("left_out", die=("metrics", 2, SIGTERM), expect=RESUBMIT)
    intervene(folder, 2, "4:5")
    assert runs.run("left_out") == folder
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows if "left_out" in row] == [4] and "digest/rollout" not in rows[3]
    code, printed = runs.replay("left_out", 5)
    assert code == 0 and "from step 4, 1 to run" in printed, printed


@pytest.mark.slow
@pytest.mark.parametrize("quantity", ["digest/rollout", "digest/critic_gradient"])
def test_a_step_that_is_not_what_was_logged_is_named(runs, whole, quantity):
    name = f"tampered_{quantity.split('/')[1]}"
    shutil.copytree(whole, runs.root / name)
    shutil.copy(f"{whole}.log", f"{runs.root / name}.log")
    file = runs.root / name / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    rows[4][quantity] += 1
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    code, printed = runs.replay(name, 5)
    assert code == 1 and f"step 5 differs, first in {quantity}" in printed
    assert runs.replay(name, 9) == (2, f"error: {file} logs steps 1 to 5: choose --step among them, not 9\n")


def test_what_is_no_run_of_ppo_is_not_replayed(tmp_path):
    road = tiny.config(tmp_path)
    open_run(tmp_path / "road", road)
    open_run(tmp_path / "road/ppo", road.ppo)
    mark_done(open_run(tmp_path / "road/reward", road.reward), {})
    for folder, sentence in {
        "road/reward": "holds a run of RewardConfig, and only those of PpoConfig",
        "road": "holds a run of RoadConfig.*name the folder of a PPO run, such as .*road/ppo",
        "elsewhere": "there is no run in",
        "road/ppo": "has not logged a step yet",
    }.items():
        with pytest.raises(ConfigError, match=sentence):
            read_run(tmp_path / folder)
    row = {"step": 1, "stage": "ppo", "time": 0, "elapsed": 0, "objective/kl": 0.0}
    (tmp_path / "road/ppo/metrics.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    with pytest.raises(ConfigError, match="was logged without digests"):
        replay(tmp_path / "road/ppo", 1)


def live_bytes() -> int:
    return sum(array.nbytes for array in jax.live_arrays())


def nbytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_with_adapters_there_is_one_copy_of_the_base(runs):
    """Live arrays: the base once; two copies, moments and average of it less than in full training."""
    mesh, held = make_mesh(MeshConfig()), {}
    for name, config in {"full": runs.config, "lora": runs.adapted}.items():
        gc.collect()
        before = live_bytes()
        ready = prepare(config, mesh)
        held[name] = live_bytes() - before
        del ready
    language = ModelDefinition(KINDS["language"], tiny.MODEL)
    base, critic = nbytes(language.abstract), nbytes(ModelDefinition(KINDS["scalar"], tiny.MODEL).abstract)
    adapters = nbytes(LoraDefinition(language, LORA).abstract)
    # Besides: reward model, critic and its two moments. A policy has parameters, two moments and an average;
    # switched-off adapters stand for the reference.
    small = 200  # counters
    assert 0 <= held["full"] - (base + 4 * base + 4 * critic) < small
    assert 0 <= held["lora"] - (base + 5 * adapters + 4 * critic) < small
    assert adapters < base / 20


def recorded(jit, programs: list):
    """`jax.jit` whose programs leave their name, their arguments' leaves and their sizes in memory."""

    def recording(function, **choices):
        jitted = jit(function, **choices)

        def call(*arguments):
            leaves = jax.tree.leaves(arguments)
            if not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
                sizes = jitted.lower(*arguments).compile().memory_analysis()
                programs.append((function.__qualname__, leaves, sizes))
            return jitted(*arguments)

        return call

    return recording


@pytest.mark.slow
def test_no_program_of_an_adapted_iteration_takes_the_base_twice(runs, monkeypatch):
    programs = []
    monkeypatch.setattr(jax, "jit", recorded(jax.jit, programs))
    ready = prepare(runs.adapted, make_mesh(MeshConfig()))
    programs.clear()
    ready.iteration(ready.start, ready.batch_at(0), ready.key)
    held, readers = jax.tree.leaves(ready.base.params), set()
    for name, leaves, sizes in programs:
        times = {sum(leaf is part for leaf in leaves) for part in held}
        assert times in ({0}, {1}), name
        if times == {1}:
            readers.add(name.split(".")[0])
            assert sizes.argument_size_in_bytes < 2 * nbytes(ready.base.params), name
    assert readers >= {"make_rollout", "make_score", "SelfCheck", "make_adapted_step"}


@pytest.mark.slow
def test_the_adapted_policy_is_the_base_and_what_was_learnt(runs, adapted):
    rows = read_metrics(adapted / "metrics.jsonl")
    assert rows[0]["objective/kl"] == rows[0]["self_check/kl_of_equal_models"] == 0
    assert rows[-1]["objective/kl"] != 0 and rows[-1]["objective/kl_k2"] > 0
    mesh = make_mesh(MeshConfig())
    base = load_model(runs.root / "policy", mesh)
    lora, adapters = load_adapters(adapted, base, mesh)
    assert lora == LORA and min(float(np.abs(x).max()) for x in jax.tree.leaves(adapters)) > 1e-5
    final = load_model(adapted, mesh, "language")
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)  # noqa: E731
    jax.tree.map(close, final.params, merged(base.params, adapters, lora))
    assert "adapters are trained" in runs.log("adapted")
    last = arrays(adapted / "checkpoints/5")
    count = LoraDefinition(base.definition, LORA).parameter_count
    of_policy = sum(array.size for name, array in last.items() if "policy" in name or "ema" in name)
    assert 0 <= of_policy - 4 * count < 10  # parameters, two moments, the average; and counters


@pytest.mark.slow
def test_an_adapted_run_is_killed_and_replayed_to_the_same_bits(runs, adapted):
    runs.run("adapted_killed", die=("update", 4 * 8 + 1, SIGKILL), expect=-SIGKILL, config=runs.adapted)
    runs.run("adapted_killed", config=runs.adapted)
    assert_same_run(adapted, runs.root / "adapted_killed")
    code, printed = runs.replay("adapted", 5)
    assert code == 0, printed


@pytest.mark.slow
def test_without_the_self_check_nothing_is_checked_and_that_is_said(runs, whole):
    config = dataclasses.replace(runs.config, self_check=False, tracking=None)
    unchecked = runs.run("unchecked", config=config)
    assert "the self-check is off" in runs.log("unchecked")
    rows = read_metrics(unchecked / "metrics.jsonl")
    assert all(row["self_check/off"] == 1 and "self_check/sampler_gap" not in row for row in rows)
    done = [json.loads((run / "done.json").read_text("utf-8")) for run in (unchecked, whole)]
    assert done[0]["self_check"] == {"on": False, "passed": 0}
    assert done[1]["self_check"] == {"on": True, "passed": 1}
    checked = read_metrics(whole / "metrics.jsonl")
    assert [row["step"] for row in checked if "tracked/text_loss" in row] == [5]
    assert not any(name.startswith("tracked/") for row in rows for name in row)
    assert digests_of(unchecked) == digests_of(whole), "looking changes nothing"


@pytest.mark.slow
def test_the_check_is_made_again_and_all_that_is_tracked_changes_nothing(runs, whole):
    everything = TrackingConfig(
        every=2, replies=True, gold=str(runs.root / "reward"), answer_tokens=4, tasks=("addition",)
    )
    changes = {"self_check_every": 2, "tracking": everything}
    watched = runs.run("watched", config=dataclasses.replace(runs.config, **changes))
    assert digests_of(watched) == digests_of(whole)
    rows = read_metrics(watched / "metrics.jsonl")
    names = ("sampler_gap", "left_padding_gap", "right_padding_gap", "batch_gap", "first_ratio_gap")
    names += ("critic_padding_gap", "reward_padding_gap")
    for row in rows:
        logged = {name for name in row if name.startswith("self_check/")}
        first = {"self_check/kl_of_equal_models"} if row["step"] == 1 else set()
        assert logged == ({f"self_check/{name}" for name in names} | first if row["step"] % 2 else set())
        assert all(row[name] < 1e-5 for name in logged)
        assert ("objective/kl_exact" in row) == bool(row["step"] % 2)
    assert json.loads((watched / "done.json").read_text("utf-8"))["self_check"]["passed"] == 3
    samples = [json.loads(line) for line in (watched / "samples.jsonl").read_text("utf-8").splitlines()]
    kinds = ("", "_tokens", "_reward", "_gold")
    columns = {f"{model}{kind}" for model in ("reference", "policy") for kind in kinds}
    assert all(set(sample) == {"prompt"} | columns for sample in samples)
