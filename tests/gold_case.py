"""The runs of `experiments/gao2022` on tiny untrained models and little data."""

import dataclasses
from pathlib import Path

import jax
import tiny

from gptjax.config import load_experiment
from gptjax.data.corpora import read_documents
from gptjax.data.tokenizers import Tokenizer
from gptjax.generation.sampling import SamplingConfig
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel, ScalarModel
from gptjax.stages import gold_labels, ppo, reward
from gptjax.stages.gold_labels import GoldLabelsConfig
from gptjax.stages.handover import save_model
from gptjax.stages.ppo import PpoConfig
from gptjax.stages.reward import RewardConfig
from gptjax.stages.tracking import TrackingConfig
from gptjax.training.optimizers import OptimizerConfig

GAO = Path(__file__).parents[1] / "experiments" / "gao2022"
MODEL = dataclasses.replace(tiny.MODEL, layers=2)
FAST = OptimizerConfig(learning_rate=2e-3, schedule="constant", weight_decay=0.0)


def make_models(root: Path) -> None:
    """A policy that likes to end its replies, `root/policy`, and a gold reward model, `root/gold`."""
    tokenizer = Tokenizer.train([d.text for d in read_documents("pydoc")[:10]], MODEL.vocab_size)
    policy = jax.jit(ModelDefinition(LanguageModel, MODEL).initialise)(jax.random.key(0))
    decoder = policy["decoder"]
    embedding = decoder["embedding"].at[tokenizer.im_end_id].multiply(60.0)
    policy = policy | {"decoder": decoder | {"embedding": embedding}}
    gold = jax.jit(ModelDefinition(ScalarModel, MODEL).initialise)(jax.random.key(1))
    save_model(root / "policy", "language", MODEL, policy, tokenizer)
    save_model(root / "gold", "scalar", MODEL, gold, tokenizer)


def labels_config(root: Path, **changes) -> GoldLabelsConfig:
    """Four replies to each of 64 prompts."""
    given = {
        "policy": str(root / "policy"),
        "gold": str(root / "gold"),
        "prompts": str(root / "data" / "dialogues.jsonl"),
        "prompt_length": 64,
        "sampling": SamplingConfig(max_new_tokens=6),
        "asked": 64,
        "batch_size": 16,
        "save_every": 1,
    }
    return dataclasses.replace(load_experiment(GAO / "labels.py"), **given | changes)


def proxy_config(root: Path) -> RewardConfig:
    """A proxy of one of the two layers, from some of the labels."""
    return dataclasses.replace(
        load_experiment(GAO / "proxy.py"),
        base=str(root / "policy"),
        source=str(root / "labels" / "preferences.jsonl"),
        at_most=12,
        layers=1,
        length=96,
        batch_size=4,
        epochs=1,
    )


def small_ppo(root: Path, config: PpoConfig, reward: str) -> PpoConfig:
    """The run on tiny models and little data, measured after iterations 2, 4 and 5."""
    return dataclasses.replace(
        config,
        policy=str(root / "policy"),
        reward=str(root / reward),
        prompts=str(root / "data" / "dialogues.jsonl"),
        sampling=SamplingConfig(max_new_tokens=6),
        prompt_length=64,
        iterations=5,
        batch_size=8,
        minibatches=1,
        corpora={str(root / "data" / "text.jsonl"): 1.0},
        ptx_length=32,
        ptx_rows=2,
        optimizer=FAST,
        eval_prompts=16,
        eval_bytes=1000,
        tracking=TrackingConfig(
            every=2, replies=True, gold=str(root / "gold"), answer_tokens=4, tasks=("majority",)
        ),
        self_check_every=2,
    )


def ppo_config(root: Path) -> PpoConfig:
    """PPO on the proxy."""
    return small_ppo(root, load_experiment(GAO / "ppo.py"), "proxy")


def make_runs(root: Path) -> None:
    """`data`, `policy`, `gold`, `labels`, `proxy` and `ppo` below the root."""
    tiny.write_data(root / "data")
    make_models(root)
    gold_labels.run(labels_config(root), root / "labels")
    reward.run(proxy_config(root), root / "proxy")
    ppo.run(ppo_config(root), root / "ppo")
