"""The reward stage: its losses, its halves of the data, a model that goes on from another, and the probe."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from gptjax.config import ConfigError
from gptjax.data.corpora import read_documents
from gptjax.data.preferences import RankedArrays
from gptjax.data.quality import DataError
from gptjax.data.tokenizers import Tokenizer
from gptjax.evaluation import reward_probe
from gptjax.evaluation.reward_probe import RewardProbeConfig, last_hidden
from gptjax.losses.listwise import best_of_n_loss, plackett_luce_loss
from gptjax.losses.ranking import ranking_loss
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.runs import read_done
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages import reward
from gptjax.stages.handover import load_model, save_model
from gptjax.stages.reward_data import demonstrations, in_half, read_groups
from gptjax.training.metrics import read_metrics


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Reward models of the two halves; the second goes on from the first. And their configurations."""
    root = tmp_path_factory.mktemp("reward")
    tokenizer = Tokenizer.train([d.text for d in read_documents("pydoc")[:20]], tiny.MODEL.vocab_size)
    params = jax.jit(ModelDefinition(LanguageModel, tiny.MODEL).initialise)(jax.random.key(0))
    save_model(root / "language", "language", tiny.MODEL, params, tokenizer)
    small = tiny.config(tiny.write_data(root / "data")).reward
    small = dataclasses.replace(small, epochs=1, length=160, base=str(root / "language"))
    configs = {
        "first": dataclasses.replace(small, loss="plackett_luce", half="first"),
        "second": dataclasses.replace(
            small, loss="best_of_n", half="second", base=str(root / "first"), normalise="mean_std"
        ),
    }
    for name, config in configs.items():
        reward.run(config, root / name)
    return root, configs


class Given:
    """A model whose scalars are its parameters."""

    def apply(self, params, tokens, **_):
        return params


@pytest.mark.parametrize(
    ("loss", "margin", "expected"),
    [
        ("pairs", 0.5, lambda *arrays: ranking_loss(*arrays, margin_scale=0.5, centring=0.25)),
        ("plackett_luce", 0.0, plackett_luce_loss),
        ("best_of_n", 0.0, best_of_n_loss),
    ],
)
def test_the_loss_is_the_one_that_is_named(loss, margin, expected):
    rng = np.random.default_rng(0)
    scalars, scores = rng.normal(size=(2, 6)).astype(np.float32), rng.integers(0, 3, (2, 3))
    batch = {"tokens": None, "segment_ids": None, "positions": None, "valid": np.ones((2, 3), bool)}
    batch |= {"end_row": np.array([[0] * 3, [1] * 3]), "end_column": np.array([[0, 1, 2], [3, 4, 5]])}
    value, _ = reward.make_reward_loss(Given(), margin, loss, 0.25)(
        scalars, batch | {"scores": scores}, 2.0, None
    )
    rewards = np.stack([scalars[0, :3], scalars[1, 3:]])
    np.testing.assert_allclose(value, expected(rewards, scores, batch["valid"])[0], rtol=1e-6)


@pytest.mark.parametrize("name", ["margin_scale", "centring"])
def test_a_margin_and_centring_belong_to_pairs(name):
    with pytest.raises(ValueError, match=f"{name} = 1.5 belongs to loss = 'pairs': set it to 0"):
        reward.RewardConfig(length=8, batch_size=1, loss="best_of_n", **{name: 1.5})


def test_halves_share_no_prompt_and_what_is_held_out(runs):
    _, configs = runs
    halves = [dataclasses.replace(configs["first"], half=half) for half in ("first", "second", "both")]
    (first, held), (second, same), (both, also) = (read_groups(config) for config in halves)
    assert held == same == also
    assert len(first) + len(second) == len(both) and first and second
    assert not [group for group in first if group.prompt in [other.prompt for other in second]]
    counts = [sum(in_half(f"tweets/{n}", half) for n in range(4000)) for half in ("first", "second", "both")]
    assert abs(counts[0] - 2000) < 100 and counts[1] == 4000 - counts[0] and counts[2] == 4000


def test_a_reward_model_goes_on_from_another(runs):
    """The first loss of the second run is that of the first run's rewards."""
    root, configs = runs
    base, config = load_model(root / "first", make_mesh(MeshConfig()), "scalar"), configs["second"]
    arrays = reward.encode(read_groups(config)[0], base.tokenizer, config, "rankings")
    rewards = reward.score_all(base.definition, base.params, arrays, config)
    chosen = reward.epoch_order(arrays.lengths.sum(1), config)[0]
    expected, _ = best_of_n_loss(rewards[chosen], arrays.scores[chosen], arrays.lengths[chosen] > 0)
    metrics = read_metrics(root / "second" / "metrics.jsonl")[0]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    assert not np.isclose(read_metrics(root / "first" / "metrics.jsonl")[0]["loss"], expected, rtol=1e-3)


def rewards_of(model, config):
    """Rewards of the training texts that are centred on."""
    arrays = reward.encode(read_groups(config)[0][:256], model.tokenizer, config, "rankings")
    return reward.score_all(model.definition, model.params, arrays, config)[demonstrations(arrays, config)]


def test_rewards_are_normalised_as_the_configuration_says(runs):
    root, configs = runs
    kept = {name: load_model(root / name, make_mesh(MeshConfig()), "scalar") for name in configs}
    biased, scaled = (rewards_of(kept[name], configs[name]) for name in ("first", "second"))
    # Sums of some 80 rewards in float32, which the head's 16 products and the scaling round.
    assert abs(biased.mean()) < 1e-5 and abs(scaled.mean()) < 1e-5
    assert abs(scaled.std() - 1) < 1e-5 < abs(biased.std() - 1)

    given = kept["first"].params
    assert reward.normalised(given, biased, "none") == (given, 1.0)
    params, scale = reward.normalised(given, biased, "mean_std")
    assert scale == biased.std()
    expected = (biased - biased.mean()) / biased.std()
    found = rewards_of(dataclasses.replace(kept["first"], params=params), configs["first"])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(DataError, match="all equal: set normalise to 'bias'"):
        reward.normalised(given, np.ones(3, np.float32), "mean_std")


def test_the_best_of_each_prompt_of_a_file_average_0(runs):
    root, configs = runs
    model, config = load_model(root / "first", make_mesh(MeshConfig()), "scalar"), configs["first"]
    arrays = reward.encode(read_groups(config)[0][:256], model.tokenizer, config, "rankings")
    rewards = reward.score_all(model.definition, model.params, arrays, config)
    valid = arrays.lengths > 0
    best = [r[v][s[v] == s[v].max()] for r, s, v in zip(rewards, arrays.scores, valid, strict=True)]
    assert abs(np.concatenate(best).mean()) < 1e-6
    assert abs(rewards[valid].mean()) > 1e-4, "the rejected ones are not centred as well"


def test_all_rated_texts_are_demonstrations_and_of_a_file_the_best():
    lengths, scores = np.array([[3, 4, 2, 0], [5, 5, 0, 0]]), np.array([[-2.0, -1, -1, 0], [-3, -1, 0, 0]])
    arrays = RankedArrays(np.zeros((2, 4, 5), np.int32), lengths, scores, np.arange(2))
    config = reward.RewardConfig(length=8, batch_size=1)
    np.testing.assert_array_equal(demonstrations(arrays, config), lengths > 0)
    own = demonstrations(arrays, dataclasses.replace(config, source="rankings.jsonl"))
    assert own.tolist() == [[False, True, True, False], [False, True, False, False]]


def test_what_the_stage_finds_is_written_down(runs):
    heldout = read_done(runs[0] / "first")["heldout"]
    assert set(heldout["accuracy_by"]) == {"gap", "length_gap"}  # a file says no source and no votes
    assert 0 <= heldout["brier"] <= 1 and heldout["length_slope"]["low"] <= heldout["length_slope"]["high"]


def test_hidden_states_of_the_last_layer_are_those_the_reward_is_read_from(runs):
    root, configs = runs
    model, config = load_model(root / "first", make_mesh(MeshConfig()), "scalar"), configs["first"]
    arrays = reward.encode(read_groups(config)[1], model.tokenizer, config, "rankings")
    hidden = last_hidden(model.definition, model.params, arrays, config, layer=tiny.MODEL.layers)
    rewards = reward.score_all(model.definition, model.params, arrays, config)
    by_hand = hidden @ np.asarray(model.params["head"])[:, 0] + np.asarray(model.params["bias"])
    np.testing.assert_allclose(by_hand, rewards[arrays.lengths > 0], atol=1e-5)


def test_the_probe_measures_each_and_all_together(runs):
    root, _ = runs
    names = (str(root / "first"), str(root / "second"))
    reward_probe.run(RewardProbeConfig(models=names, familiar=20), root / "probe")
    found = read_done(root / "probe")
    assert set(found["models"]) == set(names)
    for name in names:
        assert 0 <= found["models"][name]["unlike_auroc"]["shakespeare"] <= 1
    for name in names:  # the second's figures are of its scaled rewards, which the probe reads
        stored = read_done(name)["heldout"]
        assert found["models"][name]["accuracy"] == stored["accuracy"]
        np.testing.assert_allclose(found["models"][name]["ece_raw"], stored["ece_raw"], atol=1e-4)
    assert 0 <= found["ensemble"]["agreement"] <= 1 and found["ensemble"]["disagreement"] > 0
    with pytest.raises(ConfigError, match="language is not a run of the reward stage"):
        reward_probe.run(RewardProbeConfig(models=(str(root / "language"),)), root / "other")
