"""From a gold reward model to its curves: labels, a proxy, PPO measured along the way, the measurement."""

import dataclasses
import json
from signal import SIGKILL

import gold_case
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stage_driver

from gptjax.config import ConfigError, to_json
from gptjax.data.corpora import read_documents
from gptjax.data.preferences import read_preferences
from gptjax.data.quality import DataError
from gptjax.evaluation import alignment_tax, gold_curves
from gptjax.evaluation.alignment_tax import AlignmentTaxConfig
from gptjax.evaluation.gold_curves import GoldCurvesConfig
from gptjax.evaluation.judge import distinct_n, lexicon_scores
from gptjax.evaluation.perplexity import first_bytes, heldout_rows
from gptjax.evaluation.tracked import read_track
from gptjax.generation.decode import decode, left_pad
from gptjax.runs import read_done
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages import gold_labels, reward
from gptjax.stages.gold_labels import GoldLabelsConfig, Labelled, labeler_liking, write_labels
from gptjax.stages.handover import load_model
from gptjax.stages.keys import stage_key
from gptjax.stages.ppo_data import encode_prompts
from gptjax.stages.ppo_evaluation import heldout_prompts
from gptjax.training.metrics import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    pytest.importorskip("vaderSentiment", reason="vaderSentiment is not installed (gptjax[data])")
    folder = tmp_path_factory.mktemp("gold")
    gold_case.make_runs(folder)
    return folder


def model(root, name):
    return load_model(root / name, make_mesh(MeshConfig()))


def scores_of(judge, sequences):
    """The scalar at the end of each sequence, which is padded on the right and alone in its row."""
    length = gold_case.MODEL.context_length // 2
    tokens = np.zeros((len(sequences), length), np.int32)
    for row, ids in zip(tokens, sequences, strict=True):
        row[: len(ids)] = ids
    scalars = np.asarray(jax.jit(judge.definition.apply)(judge.params, tokens))
    return np.array([row[len(ids) - 1] for row, ids in zip(scalars, sequences, strict=True)])


def test_labels_rank_by_the_gold_reward_and_lose_nothing_silently(root, capsys):
    groups = read_preferences(root / "labels" / "preferences.jsonl")
    done = read_done(root / "labels")
    assert len(groups) == done["prompts"] > 12 and sum(len(g.completions) for g in groups) == done["replies"]
    assert done["replies"] + done["left_out"] == 32 * 4
    rows = [json.loads(line) for line in (root / "labels" / "preferences.jsonl").read_text().splitlines()]
    for row in rows:
        by_gold = np.argsort(np.argsort(-np.array(row["gold"]), kind="stable"), kind="stable") + 1
        if len(set(row["gold"])) == len(row["gold"]):
            assert row["ranking"] == by_gold.tolist()
    assert len({tuple(row["ranking"]) for row in rows}) > 2


def test_the_smaller_set_of_labels_begins_the_larger_and_a_seed_decides(root):
    files = {}
    for name, changes in {"half": {"asked": 16}, "other": {"asked": 16, "seed": 1}}.items():
        gold_labels.run(gold_case.labels_config(root, **changes), root / f"labels_{name}")
        files[name] = (root / f"labels_{name}" / "preferences.jsonl").read_text("utf-8")
    assert files["half"] and files["half"] != files["other"]
    assert (root / "labels" / "preferences.jsonl").read_text("utf-8").startswith(files["half"])


def test_a_noisy_labeler_chooses_as_bradley_and_terry_say():
    gold = jnp.tile(jnp.array([0.3, 1.0, -0.5]), (40_000, 1))
    liking = np.asarray(labeler_liking(gold, 0.7, jax.random.key(0)))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        expected = 1 / (1 + np.exp(-(gold[0, i] - gold[0, j]) / 0.7))
        share = (liking[:, i] > liking[:, j]).mean()
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 40_000)
    assert labeler_liking(gold, 0.0, jax.random.key(0)) is gold


def test_what_cannot_be_ranked_is_left_out_and_counted(tmp_path, tokenizer, capsys):
    texts = [["good", "bad", "good"], ["alone", "", "cut off"], ["", " ", "x"]]
    tokens, lengths = np.zeros((3, 3, 8), np.int32), np.zeros((3, 3), np.int32)
    for row, replies in enumerate(texts):
        for k, text in enumerate(replies):
            ids = tokenizer.encode(text)
            tokens[row, k, : len(ids)], lengths[row, k] = ids, len(ids)
    lengths[1, 2] = -1
    gold = np.array([[1.0, -2.0, 1.0]] * 3)
    labelled = Labelled(jnp.int32(1), tokens, lengths, gold, gold)
    asked = [[{"role": "user", "content": f"ask {row}"}] for row in range(3)]
    counted = write_labels(labelled, asked, tokenizer, tmp_path / "preferences.jsonl")
    assert counted == {"prompts": 1, "replies": 3, "left_out": 6}
    assert "1 of 3 prompts with 3 replies; 6 replies do not end" in capsys.readouterr().out
    row = json.loads((tmp_path / "preferences.jsonl").read_text("utf-8"))
    assert row["completions"] == texts[0] and row["ranking"] == [1, 3, 1]  # equal rewards tie
    with pytest.raises(DataError, match="no prompt has two replies that end"):
        write_labels(
            dataclasses.replace(labelled, lengths=lengths * 0 - 1), asked, tokenizer, tmp_path / "none"
        )


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"replies": 1}, "there is nothing to rank"),
        ({"batch_size": 5}, "batch_size = 5 does not divide asked = 32"),
        ({"sampling": {"temperature": 0.0}}, "greedy replies are all one"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        GoldLabelsConfig(**{"asked": 32} | wrong)


def test_a_proxy_has_the_layers_and_the_rankings_it_was_given(root, capsys):
    proxy, base = model(root, "proxy"), model(root, "policy")
    assert proxy.definition.config.layers == 1 and base.definition.config.layers == 2
    config = dataclasses.replace(gold_case.proxy_config(root), layers=3)
    with pytest.raises(ConfigError, match=r"layers = 3, but .*policy has 2: lower it"):
        reward.run(config, root / "too_deep")
    assert "the first 12 of" in capsys.readouterr().out
    shape, trunk = reward.trunk_of(base, gold_case.proxy_config(root))
    whole = base.params["decoder"]["blocks"]
    assert shape.layers == 1
    jax.tree.map(lambda ours, theirs: np.testing.assert_array_equal(ours, theirs[:1]), trunk["blocks"], whole)


def test_tracked_rows_are_an_evaluation_of_the_policy_of_that_moment(root):
    """The last row against the saved model, measured anew: a row alone, padded on the other side, plainly."""
    config, track = gold_case.ppo_config(root), read_track(root / "ppo")
    assert [row.pop("step") for row in track.rows] == [2, 4, 5]
    policy, base = model(root, "ppo"), model(root, "policy")
    tokenizer = base.tokenizer
    prompts = encode_prompts(heldout_prompts(config), tokenizer, config.prompt_length)[: config.eval_prompts]
    keys = jax.random.split(stage_key(config.seed, "ppo evaluation"), len(prompts))

    @jax.jit
    def reply(tokens, mask, key):
        stop = ((tokenizer.im_end_id,),)
        given = {"sampling": config.sampling, "stop_sequences": stop, "pad_id": tokenizer.pad_id}
        return decode(policy.definition, policy.params, tokens, mask, key[None], **given)

    whole, texts, ended, kl = [], [], [], []
    log_softmax = jax.jit(lambda params, ids: jax.nn.log_softmax(base.definition.apply(params, ids)))
    for ids, key in zip(prompts, keys, strict=True):
        out = reply(*left_pad([ids], tokenizer.pad_id, config.prompt_length), key)
        said = np.asarray(out.tokens[0])[np.asarray(out.mask[0]) > 0].tolist()
        ended.append(bool(out.stopped[0]))
        texts.append(tokenizer.decode([token for token in said if token != tokenizer.im_end_id]))
        whole.append([*ids, *said])
        row = np.zeros((1, 96), np.int32)
        row[0, : len(whole[-1])] = whole[-1]
        ours, theirs = (np.asarray(log_softmax(m.params, row))[0] for m in (policy, base))
        places = range(len(ids), len(whole[-1]))
        kl.append(sum(ours[at - 1, row[0, at]] - theirs[at - 1, row[0, at]] for at in places))
    row, expected = track.rows[-1], {"kl": np.mean(kl), "ended": np.mean(ended)}
    expected |= {
        "reward": scores_of(model(root, "proxy"), whole).mean(),
        "gold": scores_of(model(root, "gold"), whole).mean(),
    }
    expected |= {"lexicon": np.mean(lexicon_scores(texts)), "distinct_2": distinct_n(texts)}
    (source,) = config.corpora
    documents = first_bytes([d.text for d in read_documents(source, split="heldout")], config.eval_bytes)
    rows = heldout_rows(documents, tokenizer, config.ptx_length)
    losses = -np.take_along_axis(
        np.asarray(log_softmax(policy.params, rows["tokens"])), rows["targets"][..., None], -1
    )[..., 0]
    expected["text_loss"] = (losses * rows["loss_mask"]).sum() / rows["loss_mask"].sum()
    assert abs(row["kl"]) > 1e-3 and row["reward"] != row["gold"]
    assert {*expected, "on_topic"} == set(row)
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, abs=2e-5), name
    # And it is what the run says at its end.
    done = read_done(root / "ppo")["heldout"]
    assert done["policy"] | {"kl": done["kl"]} == row
    assert track.start == done["reference"] | {"kl": 0.0}


def test_without_tracking_nothing_is_measured_along_the_way(root):
    config = dataclasses.replace(gold_case.ppo_config(root), tracking=None)
    assert to_json(config)["tracking"] is None
    from gptjax.stages.ppo import judge_folders

    assert judge_folders(config) == {"reward": config.reward}
    with pytest.raises(ConfigError, match="is not a tracked run of PPO"):
        read_track(root / "proxy")


def curves_config(root, **changes):
    labels, ppo = gold_case.labels_config(root), str(root / "ppo")
    given = {name: getattr(labels, name) for name in ("policy", "gold", "prompts", "prompt_length")}
    given |= {"sampling": labels.sampling, "asked": 8, "n": 8, "batch_size": 4, "draws": 50}
    given |= {"proxies": {"small": str(root / "proxy")}, "ppo": {"small": ppo}}
    return GoldCurvesConfig(**given | changes)


def test_the_measurement_leaves_figures_and_drawings(root, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (gptjax[report])")
    gold_curves.run(curves_config(root), root / "curves")
    found = read_done(root / "curves")["proxies"]["small"]
    best = found["best_of_n"]
    assert [point["n"] for point in best["points"]] == [1, 2, 4, 8]
    assert best["points"][0]["kl"] == best["points"][0]["gold"] == pytest.approx(0.0, abs=1e-12)
    proxies = [point["proxy"] for point in best["points"]]
    assert proxies[-1] > 0 and found["scale"] > 0
    ppo, rows = found["ppo"], read_track(root / "ppo").rows
    assert [point["step"] for point in ppo["points"]] == [0, 2, 4, 5]
    assert [point["kl"] for point in ppo["points"]] == [0.0, *(max(row["kl"], 0.0) for row in rows)]
    assert ppo["points"][0]["gold"] == ppo["points"][0]["proxy"] == 0.0
    assert {"alpha", "beta", "intervals", "peak", "turns_within", "highest", "end"} <= set(ppo)
    assert (root / "curves" / "gold_curves.svg").read_text("utf-8").startswith("<?xml")
    assert (root / "curves" / "gold_curves.png").stat().st_size > 1000
    assert "| small | " in capsys.readouterr().out
    gold_curves.run(curves_config(root), root / "curves")
    assert "already done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"proxies": {"small": "gold"}}, "has reward = .*proxy', but here it must be .*gold"),
        ({"gold": "proxy"}, "has tracking.gold = "),
        ({"asked": 4000, "ppo": {}}, r"asked = 4000, but \d+ held-out prompts fit"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(root, wrong, sentence):
    def below(value):
        return str(root / value) if isinstance(value, str) else value

    changes = {
        name: {key: below(path) for key, path in value.items()} if isinstance(value, dict) else below(value)
        for name, value in wrong.items()
    }
    with pytest.raises(ConfigError, match=sentence):
        gold_curves.run(curves_config(root, **changes), root / f"refused_{next(iter(wrong))}")


def test_settings_of_the_measurement_that_cannot_be_meant_are_refused():
    with pytest.raises(ValueError, match="'b', which is no proxy"):
        GoldCurvesConfig(proxies={"a": "x"}, ppo={"b": "y"})
    with pytest.raises(ValueError, match="a proxy is called 'gold'"):
        GoldCurvesConfig(proxies={"gold": "x"})
    with pytest.raises(ValueError, match="needs 4 replies"):
        GoldCurvesConfig(proxies={"a": "x"}, n=2)


def test_the_alignment_tax_is_read_off_the_rows(root, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (gptjax[report])")
    config = AlignmentTaxConfig(ppo={"one": str(root / "ppo"), "two": str(root / "ppo")})
    alignment_tax.run(config, root / "tax")
    rows, run = read_track(root / "ppo").rows, read_done(root / "tax")["runs"]["one"]
    assert (run["kl_coef"], run["ptx_coef"], run["kl"]) == (0.0, 0.0, rows[-1]["kl"])
    assert run["end"]["on_topic"] == rows[-1]["on_topic"]
    assert run["text_loss_rise"] == pytest.approx(run["end"]["text_loss"] / run["start"]["text_loss"] - 1)
    for name in ("along_the_way", "by_coefficient"):
        assert (root / "tax" / f"{name}.svg").read_text("utf-8").startswith("<?xml")
    assert "| before PPO | " in capsys.readouterr().out


@pytest.mark.slow
def test_killed_labels_end_with_the_same_bytes(root):
    config, deaths = gold_case.labels_config(root), [("saving", 1, SIGKILL), None]
    for die in deaths:
        process = stage_driver.start(to_json(config), root / "killed", root / "cache", die)
        process.join()
        log = (root / "killed.log").read_text("utf-8")
        assert process.exitcode == (-SIGKILL if die else 0), log[-3000:]
    assert "resumed at step" in log
    ours, theirs = ((root / name / "preferences.jsonl").read_bytes() for name in ("killed", "labels"))
    assert ours == theirs
    rows = [
        [row | {"time": 0, "elapsed": 0} for row in read_metrics(root / name / "metrics.jsonl")]
        for name in ("killed", "labels")
    ]
    assert [row.keys() for row in rows[0]] == [row.keys() for row in rows[1]]
