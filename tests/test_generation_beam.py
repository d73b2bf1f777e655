"""Beam search: against every possible output, against a plain search in numpy, alone and among others."""

import itertools
from functools import partial

import beam_case
import jax
import jax.numpy as jnp
import lineage
import numpy as np
import pytest
from golden import check_golden

from gptjax.generation.beam import BeamConfig, beam_search, length_penalty, translate
from gptjax.generation.decode import decode, left_pad, request_keys
from gptjax.generation.sampling import SamplingConfig
from gptjax.models.encoder_decoder import EncoderDecoder
from gptjax.models.families import transformer
from gptjax.models.functional import ModelDefinition

V, END, PAD = 4, 1, 0


SLOTS = 9


@partial(jax.jit, static_argnames=("beams", "alpha"))
def search_tables(tables, starts, limits, beams, alpha):
    rows = jnp.repeat(jnp.arange(len(tables)), beams)

    def next_log_probs(tokens_N, step, cache):
        return jax.nn.log_softmax(tables[rows, tokens_N] * (1 + step)), cache

    settings = {"beams": beams, "alpha": alpha, "end_id": END, "pad_id": PAD}
    return beam_search(next_log_probs, None, starts, limits, SLOTS, **settings)


def bigram_search(tables_BxVxV, limit, *, beams, alpha, starts=2):
    """Beam search over log-probabilities that depend on the last token and the step."""
    starts, limits = (jnp.broadcast_to(jnp.asarray(x), (len(tables_BxVxV),)) for x in (starts, limit))
    return search_tables(jnp.asarray(tables_BxVxV, jnp.float32), starts, limits, beams, alpha)


def best_of_all(table, limit, alpha):
    """(tokens, score) of the likeliest of all outputs that end within the limit, by enumeration."""

    def log_prob(tokens):
        total, last = 0.0, 2
        for step, token in enumerate(tokens):
            logits = np.asarray(table[last], np.float64) * (1 + step)
            total, last = total + logits[token] - np.log(np.exp(logits).sum()), token
        return total

    others = [token for token in range(V) if token != END]
    outputs = [(*o, END) for n in range(limit) for o in itertools.product(others, repeat=n)]
    scores = [log_prob(o) / ((5 + len(o)) / 6) ** alpha for o in outputs]
    place = int(np.argmax(scores))
    return list(outputs[place]), scores[place]


def unpadded(tokens):
    """The ids up to the end token."""
    tokens = np.asarray(tokens).tolist()
    return tokens[: tokens.index(END) + 1] if END in tokens else tokens


@pytest.fixture(scope="module")
def tables():
    tables = np.random.default_rng(0).normal(0, 1.5, (8, V, V))
    tables[:, :, END] -= 1.0  # ends are rare, so that outputs of several lengths win
    return tables


def test_the_length_penalty_by_hand():
    assert length_penalty(1, 0.6) == 1.0
    assert length_penalty(7, 1.0) == 2.0
    assert length_penalty(100, 0.0) == 1.0


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_wide_beam_finds_the_best_of_all_outputs(tables, alpha):
    limit = 4
    found = bigram_search(tables, limit, beams=108, alpha=alpha)
    lengths = set()
    for row, table in enumerate(tables):
        tokens, score = best_of_all(table, limit, alpha)
        assert unpadded(found.tokens[row]) == tokens
        np.testing.assert_allclose(found.scores[row], score, rtol=1e-5)
        lengths.add(len(tokens))
    assert len(lengths) > 1 and found.finished.all()


def test_a_beam_finds_what_greedy_decoding_misses():
    """3 is the likelier first token, but its row spreads: p(3, end) = 0.6 / 2 = 0.3 and p(0, end) = 0.4."""
    table = np.full((V, V), -30.0)
    table[2, 3], table[2, 0] = np.log(0.6), np.log(0.4)
    table[0, END], table[3, END], table[3, 3] = 0.0, 0.001, 0.0
    outputs = []
    for beams, likelihood in ((1, 0.3), (2, 0.4)):
        found = bigram_search(table[None], 2, beams=beams, alpha=0.0)
        np.testing.assert_allclose(np.exp(found.scores), [likelihood], rtol=2e-3)
        outputs.append(unpadded(found.tokens[0]))
    assert outputs == [[3, END], [0, END]]


def test_rows_do_not_know_each_other_and_a_settled_row_never_changes(tables):
    """Rows with their own limits and starts, alone and together; the longest goes on when others are done."""
    limits, starts = jnp.asarray([1, 3, 9, 5, 2, 9, 4, 6]), jnp.asarray([2, 3, 2, 0, 2, 3, 2, 0])
    together = bigram_search(tables, limits, beams=3, alpha=0.6, starts=starts)
    for row in range(8):
        alone = bigram_search(
            tables[row : row + 1], limits[row : row + 1], beams=3, alpha=0.6, starts=starts[row : row + 1]
        )
        length = int(limits[row])
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])
        np.testing.assert_allclose(together.scores[row], alone.scores[0], rtol=1e-6)
        assert (together.tokens[row, length:] == PAD).all()


def test_where_nothing_ends_the_best_beginning_is_given(tables):
    endless = np.array(tables)
    endless[:, :, END] = -1e9
    found = bigram_search(endless, 3, beams=3, alpha=0.6)
    assert not found.finished.any() and (found.tokens[:, 3:] == PAD).all()


def test_an_early_end_stops_the_search():
    """The first token ends with probability 0.99: no output of any length can score higher."""
    table = np.zeros((1, V, V))
    table[:, :, END] = np.log(0.99 / 0.01 * (V - 1))
    steps = []

    def next_log_probs(tokens_N, step, cache):
        jax.debug.callback(lambda s: steps.append(int(s)), step)
        return jax.nn.log_softmax(jnp.asarray(table)[0, tokens_N]), cache

    settings = {"beams": 2, "alpha": 0.6, "end_id": END, "pad_id": PAD}
    found = beam_search(next_log_probs, None, jnp.asarray([2]), jnp.asarray([40]), 40, **settings)
    jax.effects_barrier()
    assert unpadded(found.tokens[0]) == [END] and steps == [0]


# The encoder-decoder


def plain_search(log_probs_of, start, limit, beams, alpha, end):
    """Beam search as a list of hypotheses, each scored anew from its first token."""
    live, best = [([start], 0.0)], (None, -np.inf)
    for length in range(1, limit + 1):
        candidates = [
            ([*tokens, token], total + float(log_prob))
            for tokens, total in live
            for token, log_prob in enumerate(log_probs_of(tokens))
        ]
        candidates.sort(key=lambda c: -c[1])
        for tokens, total in candidates[:beams]:
            if tokens[-1] == end and total / ((5 + length) / 6) ** alpha > best[1]:
                best = tokens[1:], total / ((5 + length) / 6) ** alpha
        live = [c for c in candidates[: 2 * beams] if c[0][-1] != end][:beams]
        if live[0][1] / ((5 + limit) / 6) ** alpha <= best[1]:
            break
    return best if best[0] else (live[0][0][1:], live[0][1] / ((5 + limit) / 6) ** alpha)


SOURCES = [[5, 9, 23, 8, 30], [7, 3], [11, 12, 13, 14, 15, 16, 17]]
SEARCH = BeamConfig(extra_tokens=6)


@pytest.fixture(scope="module")
def translator():
    definition = ModelDefinition(
        EncoderDecoder, transformer("base", **lineage.TINY | {"context_length": 24, "layers": 1}, dropout=0.0)
    )
    params = lineage.random_params(definition)
    forward = jax.jit(definition.apply)

    def log_probs_of(source, tokens):
        padded = np.zeros((1, 24), np.int32)
        padded[0, : len(tokens)] = tokens
        logits = forward(params, np.asarray([source]), padded)[0, len(tokens) - 1]
        return np.asarray(jax.nn.log_softmax(logits))

    return definition, params, log_probs_of


program = jax.jit(translate, static_argnames=("definition", "search", "end_id", "pad_id"))


def searched(translator, width):
    """What a beam of 4 finds for the sources, padded to a width."""
    definition, params, _ = translator
    rows, mask = (np.zeros((len(SOURCES), width), np.int32) for _ in range(2))
    for row, source in enumerate(SOURCES):
        rows[row, : len(source)], mask[row, : len(source)] = source, 1
    return program(definition, params, rows, mask, search=SEARCH, end_id=END, pad_id=PAD)


@pytest.mark.slow
def test_translations_are_those_of_a_plain_search_without_a_cache(translator):
    """Sources of three lengths in one batch, each with its own limit."""
    found = searched(translator, 7)
    for row, source in enumerate(SOURCES):
        log_probs_of, limit = partial(translator[2], source), len(source) + SEARCH.extra_tokens
        tokens, score = plain_search(log_probs_of, END, limit, SEARCH.beams, SEARCH.alpha, END)
        assert found.tokens[row, : len(tokens)].tolist() == tokens
        np.testing.assert_allclose(found.scores[row], score, rtol=1e-4)


def test_a_translation_does_not_depend_on_the_padding(translator):
    narrow, wide = (searched(translator, width) for width in (7, 9))
    np.testing.assert_array_equal(wide.tokens[:, :13], narrow.tokens)
    np.testing.assert_allclose(wide.scores, narrow.scores, rtol=1e-5)


# A language model


def test_continuations_are_those_stored_from_transformers():
    """Written by `UPDATE_GOLDEN=1 pytest tests/parity/test_generation_transformers.py`."""
    found = beam_case.search()
    assert found.finished.all()
    check_golden("beam_gpt1", beam_case.listed(found.tokens, found.scores))


@pytest.mark.slow
def test_one_beam_is_greedy_decoding():
    definition, params = beam_case.DEFINITION, beam_case.PARAMS
    tokens, mask = left_pad(beam_case.PROMPTS, beam_case.PAD, max(map(len, beam_case.PROMPTS)))
    settings = {"sampling": SamplingConfig(temperature=0.0, max_new_tokens=beam_case.NEW)}
    settings |= {"stop_sequences": ((beam_case.END,),), "pad_id": beam_case.PAD}
    keys = request_keys(range(len(tokens)))
    greedy = jax.jit(partial(decode, definition, **settings))(params, tokens, mask, keys)
    found = beam_case.search(beams=1)
    np.testing.assert_array_equal(found.tokens, greedy.tokens)
    np.testing.assert_allclose(found.scores, greedy.log_probs.sum(1), rtol=1e-4)
