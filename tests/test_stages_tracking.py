"""What a run of PPO is measured by along the way, measured anew and plainly."""

import dataclasses

import gold_case
import jax
import numpy as np
import pytest
import tiny
from ppo_case import moved

from gptjax.config import ConfigError, to_json
from gptjax.data.corpora import read_documents
from gptjax.evaluation.judge import distinct_n, lexicon_scores
from gptjax.evaluation.perplexity import first_bytes, heldout_rows
from gptjax.evaluation.tracked import read_track
from gptjax.evaluation.zero_shot import ZeroShotConfig, task_figures
from gptjax.generation.decode import decode, left_pad
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import ScalarModel
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages.handover import load_model
from gptjax.stages.judges import judge_folders, paying
from gptjax.stages.keys import stage_key
from gptjax.stages.ppo_data import encode_prompts
from gptjax.stages.ppo_evaluation import DIVERGENCES, Evaluation, heldout_prompts, make_evaluation
from gptjax.stages.tracking import TrackingConfig, tracked, with_tests

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


def scores_of(judge, sequences):
    """The scalar at the end of each sequence, which is padded on the right and alone in its row."""
    tokens = np.zeros((len(sequences), 96), np.int32)
    for row, ids in zip(tokens, sequences, strict=True):
        row[: len(ids)] = ids
    scalars = np.asarray(jax.jit(judge.definition.apply)(judge.params, tokens))
    return np.array([row[len(ids) - 1] for row, ids in zip(scalars, sequences, strict=True)])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    pytest.importorskip("vaderSentiment", reason="vaderSentiment is not installed (gptjax[data])")
    folder = tmp_path_factory.mktemp("tracking")
    tiny.write_data(folder / "data")
    gold_case.make_models(folder)
    return folder


@pytest.fixture(scope="module")
def models(root):
    return {name: load_model(root / name, make_mesh(MeshConfig())) for name in ("policy", "gold")}


@pytest.mark.slow
def test_tracked_figures_are_those_of_replies_drawn_and_read_one_by_one(root, models):
    config, base, gold = gold_case.ppo_config(root), models["policy"], models["gold"]
    policy, tokenizer = moved(base.params, 0.03, 2), base.tokenizer
    proxy = dataclasses.replace(gold, params=moved(gold.params, 0.1, 3))
    judges = {"reward": proxy, "gold": gold}
    evaluation = make_evaluation(config, base, judges, config.ptx_length, config.conventions)
    row = tracked(evaluation, policy, config.tracking)

    prompts = encode_prompts(heldout_prompts(config), tokenizer, config.prompt_length)[: config.eval_prompts]
    keys = jax.random.split(stage_key(config.seed, "ppo evaluation"), len(prompts))

    @jax.jit
    def reply(tokens, mask, key):
        given = {"stop_sequences": ((tokenizer.im_end_id,),), "pad_id": tokenizer.pad_id}
        return decode(base.definition, policy, tokens, mask, key[None], sampling=config.sampling, **given)

    @jax.jit
    def log_probs(params, tokens):
        return jax.nn.log_softmax(base.definition.apply(params, tokens))

    whole, texts, ended, kl = [], [], [], []
    for ids, key in zip(prompts, keys, strict=True):
        out = reply(*left_pad([ids], tokenizer.pad_id, config.prompt_length), key)
        said = np.asarray(out.tokens[0])[np.asarray(out.mask[0]) > 0].tolist()
        ended.append(bool(out.stopped[0]))
        texts.append(tokenizer.decode([token for token in said if token != tokenizer.im_end_id]))
        whole.append([*ids, *said])
        tokens = np.zeros((1, 96), np.int32)
        tokens[0, : len(whole[-1])] = whole[-1]
        ours, theirs = (np.asarray(log_probs(params, tokens))[0] for params in (policy, base.params))
        places = range(len(ids), len(whole[-1]))
        ratios = np.array([ours[at - 1, tokens[0, at]] - theirs[at - 1, tokens[0, at]] for at in places])
        exact = sum((np.exp(ours[at - 1]) * (ours[at - 1] - theirs[at - 1])).sum() for at in places)
        kl.append([ratios.sum(), (ratios**2 / 2).sum(), (np.exp(-ratios) - 1 + ratios).sum(), exact])
    expected = dict(zip(DIVERGENCES, np.mean(kl, axis=0), strict=True)) | {
        "ended": np.mean(ended),
        "distinct_2": distinct_n(texts),
    }
    expected |= {"lexicon": np.mean(lexicon_scores(texts))}
    expected |= {name: scores_of(judge, whole).mean() for name, judge in judges.items()}
    (source,) = config.corpora
    documents = first_bytes([d.text for d in read_documents(source, split="heldout")], config.eval_bytes)
    rows = heldout_rows(documents, tokenizer, config.ptx_length)
    picked = np.take_along_axis(np.asarray(log_probs(policy, rows["tokens"])), rows["targets"][..., None], -1)
    expected["text_loss"] = -(picked[..., 0] * rows["loss_mask"]).sum() / rows["loss_mask"].sum()

    assert 0 < np.mean(ended) < 1 and abs(expected["kl"]) > 1e-3
    assert {f"tracked/{name}" for name in expected} == set(row)
    for name, value in expected.items():
        assert row[f"tracked/{name}"] == pytest.approx(value, abs=2e-5), name


def test_without_tracking_there_is_no_other_judge(root):
    config = gold_case.ppo_config(root)
    assert judge_folders(config) == {"reward": config.reward, "gold": config.tracking.gold}
    config = dataclasses.replace(config, tracking=None)
    assert judge_folders(config) == {"reward": config.reward} and to_json(config)["tracking"] is None
    with pytest.raises(ValueError, match="tracking.gold judges replies: set tracking.replies"):
        TrackingConfig(gold="runs/gold")
    with pytest.raises(ConfigError, match="is no run of PPO whose replies were tracked"):
        read_track(root / "policy")


def test_the_members_of_an_ensemble_have_one_shape(root, models):
    config = dataclasses.replace(gold_case.ppo_config(root), ensemble=("other",))
    assert list(judge_folders(config)) == ["reward", "reward_2", "gold"]
    gold = models["gold"]
    definition = ModelDefinition(ScalarModel, dataclasses.replace(gold.definition.config, layers=1))
    judges = {"reward": gold, "reward_2": gold, "gold": gold}
    assert paying(config, judges) == (gold.params, gold.params)
    with pytest.raises(ConfigError, match="the reward models of .*proxy and other differ in shape"):
        paying(config, judges | {"reward_2": dataclasses.replace(gold, definition=definition)})
    with pytest.raises(ValueError, match="disagreement_penalty needs ensemble"):
        dataclasses.replace(config, ensemble=(), disagreement_penalty=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "shots"), [("majority", 2), ("addition", 0)])
def test_tasks_are_asked_as_a_measurement_of_a_finished_model_asks_them(models, task, shots):
    base, params = models["policy"], moved(models["policy"].params, 0.03, 2)
    config = TrackingConfig(tasks=(task,), shots=shots)
    evaluation = with_tests(Evaluation([], None, lambda params: {"text_loss": 2.0}), base, config)
    asked = ZeroShotConfig(models=("policy",), task=task, shots=(shots,), length=128, batch_size=10)
    alone = task_figures(dataclasses.replace(base, params=params), asked)[str(shots)]["accuracy"]
    assert tracked(evaluation, params, config) == {"tracked/text_loss": 2.0, f"tracked/{task}": alone}


def test_answers_beyond_the_context_are_refused(models):
    with pytest.raises(ConfigError, match="answer_tokens and the question = .* longer than the model's"):
        with_tests(None, models["policy"], TrackingConfig(answer_tokens=250))
    with pytest.raises(ConfigError, match="tracking.shots and the question = .* longer than the model's"):
        with_tests(None, models["policy"], TrackingConfig(tasks=("addition",), shots=20))
