"""Gold labels: rankings by the gold reward, a labeler that errs, what is left out, seeds."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.data.quality import DataError
from gptjax.generation.sampling import SamplingConfig
from gptjax.stages.gold_labels import GoldLabelsConfig, Labelled, write_labels
from gptjax.stages.labels import labeler_liking

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


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
        ({"sampling": SamplingConfig(temperature=0.0)}, "greedy replies are all one"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        GoldLabelsConfig(**{"asked": 32} | wrong)
