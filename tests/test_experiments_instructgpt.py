"""Every optimiser in PPO's place takes a few steps, in a small size on a little of the data it names."""

import dataclasses
import importlib
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
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages.handover import load_model, save_model
from gptjax.stages.ppo_evaluation import DIVERGENCES

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "experiments" / "instructgpt"
LOSSES = ["dpo", "ipo", "kto", "orpo"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with untrained models in the places that the experiments name, and a little data."""
    pytest.importorskip("vaderSentiment", reason="vaderSentiment is not installed (gptjax[data])")
    folder = tmp_path_factory.mktemp("instructgpt")
    tiny.write_data(folder / "data")
    tokenizer = Tokenizer.train((d.text for d in read_documents("pydoc")[:10]), vocab_size=384)
    for stage, kind, module in (("finetune", "language", LanguageModel), ("reward", "scalar", ScalarModel)):
        params = jax.jit(ModelDefinition(module, tiny.MODEL).initialise)(jax.random.key(0))
        save_model(folder / "runs" / "quickstart" / stage, kind, tiny.MODEL, params, tokenizer)
    return folder


@pytest.fixture
def run(root, monkeypatch):
    """`name, changes -> figures` of an experiment that has run with the changes."""
    monkeypatch.chdir(root)

    def run_changed(name, **changes):
        config = dataclasses.replace(load_experiment(FOLDER / f"{name}.py"), **changes)
        importlib.import_module(type(config).__module__).run(config, root / name)
        assert load_model(root / name, make_mesh(MeshConfig()), "language").digest
        return read_done(root / name)["heldout"]

    return run_changed


def judged_little(judging, root):
    text = {str(root / "data" / "text.jsonl"): 1.0}
    return dataclasses.replace(
        judging,
        prompts=str(root / "data" / "dialogues.jsonl"),
        prompt_length=64,
        eval_prompts=4,
        eval_bytes=1000,
        corpora=text,
        sampling=dataclasses.replace(judging.sampling, max_new_tokens=4),
    )


@pytest.mark.parametrize("name", LOSSES)
def test_a_policy_learns_from_rankings(name, run, root):
    config = load_experiment(FOLDER / f"{name}.py")
    assert config.loss == name
    source = str(root / "data" / "preferences.jsonl")
    figures = run(name, source=source, batch_size=8, judging=judged_little(config.judging, root))
    assert {"accuracy", "reference", "policy", *DIVERGENCES} <= set(figures)
    assert {"lexicon", "reward", "text_loss"} <= set(figures["policy"])


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_a_policy_learns_from_groups(name, run, root):
    config = load_experiment(FOLDER / f"{name}.py")
    assert config.estimator == name
    little = judged_little(config, root)
    changes = {field: getattr(little, field) for field in ("prompts", "sampling", "corpora", "eval_bytes")}
    figures = run(name, iterations=2, batch_size=8, prompt_length=64, eval_prompts=4, **changes)
    assert {"reference", "policy", *DIVERGENCES} == set(figures)


def test_a_policy_learns_from_answers_that_are_checked(run, root):
    run("sums", steps=2, length=64)
    little = {"iterations": 1, "batch_size": 8, "group_size": 4, "minibatches": 1, "self_check": False}
    figures = run("grpo_answers", policy=str(root / "sums"), prompt_length=48, eval_prompts=4, **little)
    assert {name: set(figures[name]) for name in figures} == dict.fromkeys(
        ("reference", "policy"), {"right", "ended"}
    )


def test_a_policy_learns_from_its_best_replies(run, root):
    pytest.importorskip("chatterbot_corpus", reason="chatterbot-corpus is not installed (gptjax[data])")
    config = load_experiment(FOLDER / "best_of_n.py")
    little = judged_little(config, root)
    changes = {field: getattr(little, field) for field in ("prompts", "corpora", "eval_bytes")}
    sampling = dataclasses.replace(config.sampling, max_new_tokens=8)
    training = dataclasses.replace(config.finetune, steps=2, length=240)
    changes |= {"sampling": sampling, "finetune": training, "prompt_length": 64, "missing_eos_penalty": 9.0}
    figures = run("best_of_n", asked=16, n=64, eval_prompts=4, **changes)
    assert [point["n"] for point in figures["frontier"]] == [1, 2, 4, 8, 16, 32, 64]
