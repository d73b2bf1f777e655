"""The losses of BERT's pre-training and of fine-tuning on a task, against numbers worked out by hand."""

import doctest
from math import log

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.losses import masked_lm, transfer
from gptjax.losses.masked_lm import masked_lm_loss
from gptjax.losses.transfer import auxiliary_loss, task_loss, token_weights


@pytest.mark.parametrize("module", [masked_lm, transfer])
def test_examples(module):
    results = doctest.testmod(module)
    assert results.failed == 0 and results.attempted > 1


def odds(*weights):
    """Logits of a distribution in proportion to `weights`."""
    return [log(weight) for weight in weights]


# Two rows of two places over three tokens. The second row has one place.
TOKENS = jnp.array([[odds(1, 2, 1), odds(1, 1, 2)], [odds(3, 1, 4), odds(1, 1, 1)]])
TARGETS, PLACES = jnp.array([[1, 0], [0, 0]]), jnp.array([[1.0, 1.0], [1.0, 0.0]])
SENTENCES, LABELS, ROWS = jnp.array([odds(3, 1), odds(1, 1)]), jnp.array([0, 1]), jnp.ones(2)
MASKED = (log(2) + log(4) + log(8 / 3)) / 3
SENTENCE = (log(4 / 3) + log(2)) / 2


def test_hidden_tokens_and_next_sentences_by_hand():
    loss, metrics = masked_lm_loss(TOKENS, TARGETS, PLACES, SENTENCES, LABELS, ROWS)
    assert float(loss) == pytest.approx(MASKED + SENTENCE, rel=1e-6)
    assert float(metrics["masked_loss"]) == pytest.approx(MASKED, rel=1e-6)
    assert float(metrics["next_sentence_loss"]) == pytest.approx(SENTENCE, rel=1e-6)
    assert float(metrics["masked_accuracy"]) == pytest.approx(1 / 3)
    assert float(metrics["next_sentence_accuracy"]) == pytest.approx(1 / 2)  # a tie is no right answer
    without, metrics = masked_lm_loss(TOKENS, TARGETS, PLACES, SENTENCES, LABELS, ROWS, next_sentence=False)
    assert float(without) == pytest.approx(MASKED, rel=1e-6) == float(metrics["masked_loss"])
    assert float(metrics["next_sentence_loss"]) == pytest.approx(SENTENCE, rel=1e-6)


def test_parts_of_a_batch_add_up():
    totals = {"places": 3.0, "rows": 2.0}
    whole = (TOKENS, TARGETS, PLACES, SENTENCES, LABELS, ROWS)
    parts = [masked_lm_loss(*(x[r : r + 1] for x in whole), denominators=totals)[0] for r in (0, 1)]
    assert float(sum(parts)) == pytest.approx(MASKED + SENTENCE, rel=1e-6)


def test_what_has_no_weight_has_no_gradient():
    def loss(tokens, sentences):
        return masked_lm_loss(tokens, TARGETS, PLACES, sentences, LABELS, jnp.array([1.0, 0.0]))[0]

    by_token, by_sentence = jax.grad(loss, (0, 1))(TOKENS, SENTENCES)
    assert (by_token[1, 1] == 0).all() and (by_sentence[1] == 0).all()
    assert (by_token[0] != 0).all() and (by_sentence[0] != 0).all()


def test_task_by_hand():
    logits, labels = jnp.array([odds(1, 2, 5), odds(6, 1, 1)]), jnp.array([2, 1])
    loss, metrics = task_loss(logits, labels, jnp.ones(2))
    assert float(loss) == pytest.approx((log(8 / 5) + log(8)) / 2, rel=1e-6)
    assert float(metrics["accuracy"]) == 0.5
    half = [task_loss(logits[i : i + 1], labels[i : i + 1], jnp.ones(1), denominator=2.0)[0] for i in (0, 1)]
    assert float(sum(half)) == pytest.approx(float(loss), rel=1e-6)


def test_every_sequence_and_every_example_count_alike():
    weights = token_weights(jnp.array([[1, 3], [2, 4]]), 6)
    assert weights.shape == (2, 2, 5)
    np.testing.assert_allclose(weights[0], [[1 / 2, 0, 0, 0, 0], [1 / 6, 1 / 6, 1 / 6, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(weights.sum((1, 2)), [1, 1], rtol=1e-6)


def test_auxiliary_language_loss_by_hand():
    """Two examples of one sequence, `1 0` and `0 1 0`: one, then two tokens to predict."""
    rows = jnp.array([odds(1, 3), odds(1, 1)])  # of the hidden states [1, 0] and [0, 1]
    hidden = jnp.eye(2)[jnp.array([[[0, 1, 1]], [[0, 1, 1]]])]
    tokens, ends = jnp.array([[[1, 0, 0]], [[0, 1, 0]]]), jnp.array([[1], [2]])
    first, second = log(4), (log(4 / 3) + log(2)) / 2
    for matrix, transposed in ((rows, False), (rows.T, True)):
        loss = auxiliary_loss(hidden, tokens, ends, jnp.ones(2), matrix, transposed=transposed)
        assert float(loss) == pytest.approx((first + second) / 2, rel=1e-6)
    alone = auxiliary_loss(hidden, tokens, ends, jnp.array([0.0, 1.0]), rows, transposed=False)
    assert float(alone) == pytest.approx(second, rel=1e-6)
