"""The first step of every stage against a naive recomputation, and against stored numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from golden import check_golden

from gptjax.data.chat import render_dialogue
from gptjax.data.mixture import Mixture
from gptjax.data.quality import BadRows
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel, ScalarModel
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages import finetune, pretrain, reward
from gptjax.stages.dialogue_rows import dialogue_rows, read_source
from gptjax.stages.handover import load_model
from gptjax.stages.keys import stage_key
from gptjax.stages.reward_data import demonstrations, encode
from gptjax.training.metrics import read_metrics


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """Folder and configurations of three stages of one step each, without dropout."""
    root = tmp_path_factory.mktemp("goldens")
    road = tiny.config(tiny.write_data(root / "data"))
    base = {name: str(root / name) for name in ("pretrain", "finetune")}
    configs = {
        "pretrain": dataclasses.replace(road.pretrain, steps=1),
        "finetune": dataclasses.replace(road.finetune, steps=1, dropout=0.0, base=base["pretrain"]),
        "reward": dataclasses.replace(road.reward, epochs=1, batch_size=32, base=base["finetune"]),
    }
    for stage in (pretrain, finetune, reward):
        name = stage.__name__.split(".")[-1]
        stage.run(configs[name], root / name)
    return root, configs


def first_step(folder) -> dict[str, float]:
    """The metrics of the update of step 1."""
    row = read_metrics(folder / "metrics.jsonl")[0]
    assert row.pop("step") == 1
    return {
        name: row[name] for name in row if name not in ("stage", "time", "elapsed") and "heldout" not in name
    }


def token_losses(logits, targets):
    """Negative log-likelihood of each target, float64."""
    logits = np.asarray(logits, np.float64)
    log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    return log_z - np.take_along_axis(logits, targets[..., None], -1)[..., 0]


def norm(tree) -> float:
    return sum(float((np.asarray(leaf, np.float64) ** 2).sum()) for leaf in jax.tree.leaves(tree)) ** 0.5


def naive_gradient_norm(definition, params, tokens, targets, weights):
    """Norm of the gradient of the weighted sum of token losses, straight from the logits."""

    @jax.jit
    @jax.grad
    def gradient(params):
        log_probs = jax.nn.log_softmax(definition.apply(params, tokens))
        return -(weights * jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0]).sum()

    return norm(gradient(params))


def test_pretraining_is_the_mean_cross_entropy_of_the_rows(road):
    root, configs = road
    config, metrics = configs["pretrain"], first_step(root / "pretrain")
    definition = ModelDefinition(LanguageModel, config.model)
    params = jax.jit(definition.initialise)(jax.random.fold_in(stage_key(config.seed, "pretrain"), 0))
    source = next(iter(config.corpora))
    rows = {source: np.load(root / "pretrain" / "tokens" / "0.npy")}
    rows = Mixture(rows, config.corpora, config.batch_size, config.seed).batch_at(0)
    logits = jax.jit(definition.apply)(params, rows[:, :-1])
    losses = token_losses(logits, rows[:, 1:])
    np.testing.assert_allclose(metrics["loss"], losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (np.argmax(logits, -1) == rows[:, 1:]).mean(), rtol=1e-6)
    weights = np.full(losses.shape, 1 / losses.size, np.float32)
    expected = naive_gradient_norm(definition, params, rows[:, :-1], rows[:, 1:], weights)
    np.testing.assert_allclose(metrics["gradient_norm"], expected, rtol=1e-4)
    check_golden("pretrain", metrics)


def test_finetuning_counts_the_assistants_tokens_alone(road):
    root, configs = road
    config, metrics = configs["finetune"], first_step(root / "finetune")
    base = load_model(root / "pretrain", make_mesh(MeshConfig()))
    rows = dialogue_rows(
        config.dialogues, "train", stage="finetune", tokenizer=base.tokenizer, length=config.length, seed=0
    )
    batch = Mixture(rows, config.dialogues, config.batch_size, config.seed).batch_at(0)
    rendered = {}
    for dialogue, _ in read_source(next(iter(config.dialogues)), "train", BadRows(), 0):
        ids, mask = render_dialogue(dialogue, base.tokenizer)
        rendered[tuple(ids[:-1])] = dialogue[-1]["content"], ids, mask

    dialogues = []
    for row in range(config.batch_size):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            own = batch["segment_ids"][row] == segment
            reply, ids, mask = rendered[tuple(batch["tokens"][row][own].tolist())]
            said = [token for token, counted in zip(ids, mask, strict=True) if counted]
            assert base.tokenizer.decode(said) == reply and said[-1] == base.tokenizer.im_end_id
            dialogues.append((ids, mask))
    assert len(dialogues) > config.batch_size  # rows are shared

    # Each dialogue alone in its row; attention to the left makes padding on the right harmless.
    tokens = np.zeros((len(dialogues), config.length + 1), np.int32)
    counted = np.zeros((len(dialogues), config.length), np.float32)
    for row, (ids, mask) in enumerate(dialogues):
        tokens[row, : len(ids)], counted[row, : len(ids) - 1] = ids, mask[1:]
    logits = jax.jit(base.definition.apply)(base.params, tokens[:, :-1])
    losses = token_losses(logits, tokens[:, 1:])
    np.testing.assert_allclose(metrics["loss"], (losses * counted).sum() / counted.sum(), rtol=1e-5)
    weights = counted / counted.sum()
    expected = naive_gradient_norm(base.definition, base.params, tokens[:, :-1], tokens[:, 1:], weights)
    np.testing.assert_allclose(metrics["gradient_norm"], expected, rtol=1e-4)
    check_golden("finetune", metrics)


def test_reward_model_compares_every_pair_of_a_prompt(road):
    root, configs = road
    config, metrics = configs["reward"], first_step(root / "reward")
    base = load_model(root / "finetune", make_mesh(MeshConfig()))
    definition = ModelDefinition(ScalarModel, base.definition.config)
    fresh = jax.jit(definition.initialise)(jax.random.fold_in(stage_key(config.seed, "reward"), 0))
    params = {"decoder": base.params["decoder"], "head": fresh["head"], "bias": fresh["bias"]}
    groups = reward.read_groups(config)[0]
    arrays = reward.encode(groups, base.tokenizer, config, "rankings")
    assert len(arrays.tokens) == len(groups)  # none left out
    chosen = [groups[i] for i in reward.epoch_order(arrays.lengths.sum(1), config)[0]]
    apply = jax.jit(definition.apply)
    losses, right = [], []
    for group in chosen:
        dialogues = [[*group.prompt, {"role": "assistant", "content": text}] for text in group.completions]
        tokens, last = np.zeros((config.k_max, config.length), np.int32), []
        for row, dialogue in zip(tokens, dialogues, strict=False):
            ids = render_dialogue(dialogue, base.tokenizer)[0]
            ids = ids[: len(ids) - ids[::-1].index(base.tokenizer.im_end_id)]
            row[: len(ids)] = ids
            last.append(len(ids) - 1)
        scalars = np.asarray(apply(params, tokens), np.float64)
        rewards = [scalars[k, place] for k, place in enumerate(last)]
        gaps = [
            rewards[i] - rewards[j]
            for i in range(len(rewards))
            for j in range(len(rewards))
            if group.scores[i] > group.scores[j]
        ]
        losses.append(np.mean([np.log1p(np.exp(-gap)) for gap in gaps]))
        right.append(np.mean([gap > 0 for gap in gaps]))
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(right), atol=1e-6)
    assert metrics["groups"] == len(chosen)
    assert metrics["pairs"] == sum(len(g.scores) * (len(g.scores) - 1) / 2 for g in chosen)
    check_golden("reward", metrics)


def test_rewards_are_0_on_average_after_training(road):
    """Ouyang et al. 2022, appendix C.2: the bias makes the demonstrations' mean reward 0."""
    root, configs = road
    model = load_model(root / "reward", make_mesh(MeshConfig()))
    groups = reward.read_groups(configs["reward"])[0]
    arrays = encode(groups, model.tokenizer, configs["reward"], "rankings")
    scores = reward.score_all(model.definition, model.params, arrays, configs["reward"])
    best = demonstrations(arrays, configs["reward"])
    assert best.any(1).all() and best.sum() < (arrays.lengths > 0).sum(), "those that are put first"
    assert abs(scores[best].mean()) < 1e-6 and scores[arrays.lengths > 0].std() > 1e-3
    assert (scores[arrays.lengths == 0] == 0).all()
