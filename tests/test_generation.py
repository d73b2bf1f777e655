"""Decoding with a cache against the plain forward pass, sampling against numpy, and the text engine."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.generation.decode import decode, ends_with, left_pad, request_keys
from gptjax.generation.engine import TextEngine
from gptjax.generation.sampling import SamplingConfig, nucleus, sample, shortlist
from gptjax.losses.lm import token_log_probs
from gptjax.models.families import gpt2, llama
from gptjax.models.functional import ModelDefinition, layer_parameters
from gptjax.models.heads import LanguageModel

V, PAD = 37, 36
TINY = {"vocab_size": V, "context_length": 48, "width": 16, "layers": 2, "heads": 4}
CONFIGS = {
    "gpt2": gpt2("124M", **TINY),
    "llama": llama("7B", **TINY, kv_heads=2, mlp_width=24),
}
PROMPTS = [[5, 6, 7], [1, 2, 3, 4, 5, 6, 7], [30]]


def define(config, seed=0):
    definition, rng = ModelDefinition(LanguageModel, config), np.random.default_rng(seed)
    return definition, jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), jnp.float32), definition.abstract
    )


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS.keys())
def model(request):
    return define(request.param)


@pytest.fixture(scope="module")
def llama_model():
    return define(dataclasses.replace(CONFIGS["llama"], layers=1))


_decode = jax.jit(decode, static_argnums=0, static_argnames=("sampling", "stop_sequences", "pad_id"))


def replies(model, prompts, seeds, length=None, stop=(), **sampling):
    definition, params = model
    tokens, mask = left_pad(prompts, PAD, length or max(map(len, prompts)))
    settings = {"sampling": SamplingConfig(**sampling), "stop_sequences": stop, "pad_id": PAD}
    return _decode(definition, params, tokens, mask, request_keys(seeds), **settings)


@pytest.fixture(scope="module")
def sampled(llama_model):
    return replies(llama_model, PROMPTS, [11, 12, 13], temperature=0.7, max_new_tokens=10)


def test_logits_with_cache_equal_logits_without(model):
    """Three chunks of different lengths, one row padded on the left, against one pass over everything."""
    definition, params = model
    rng = np.random.default_rng(3)
    rows = [rng.integers(0, V, 9).tolist(), rng.integers(0, V, 7).tolist()]
    tokens, mask = left_pad(rows, PAD, 9)

    def cached(params):
        bound, layers = definition.bind(params), layer_parameters(params)
        caches, out = bound.decoder.empty_caches(2, 9), []
        for first, last in ((0, 4), (4, 5), (5, 9)):
            slots = np.arange(9)
            seen = (slots[None] <= np.arange(first, last)[:, None]) & mask[:, None, None]
            positions = np.maximum(mask.cumsum(1) - 1, 0)[:, first:last]
            hidden, caches = bound.decoder.extend(
                tokens[:, first:last], positions, seen, caches, first, layers
            )
            out.append(bound.logits(hidden))
        return jnp.concatenate(out, 1)

    with_cache = jax.jit(cached)(params)
    plain = jax.jit(definition.apply)
    np.testing.assert_allclose(with_cache[0], plain(params, tokens[:1])[0], rtol=1e-5, atol=1e-5)
    alone = plain(params, np.asarray([rows[1]]))[0]
    np.testing.assert_allclose(with_cache[1, 2:], alone, rtol=1e-5, atol=1e-5)


def test_log_probs_of_sampling_equal_teacher_forcing(llama_model, sampled):
    definition, params = llama_model
    apply = jax.jit(definition.apply)
    for row, prompt in enumerate(PROMPTS):
        whole = prompt + np.asarray(sampled.tokens[row]).tolist()
        padded = np.asarray([whole + [0] * (17 - len(whole))])  # causal: what follows changes nothing
        log_probs = token_log_probs(apply(params, padded[:, :-1]), padded[:, 1:], 0.7)[0]
        replied = log_probs[len(prompt) - 1 : len(prompt) + 9]
        np.testing.assert_allclose(sampled.log_probs[row], replied, rtol=1e-5, atol=1e-5)
    assert np.asarray(sampled.mask).all()
    assert not np.asarray(sampled.stopped).any()


def test_a_reply_does_not_depend_on_its_neighbours(llama_model, sampled):
    alone = replies(llama_model, PROMPTS[:1], [11], temperature=0.7, max_new_tokens=10)
    np.testing.assert_array_equal(alone.tokens[0], sampled.tokens[0])
    np.testing.assert_allclose(alone.log_probs[0], sampled.log_probs[0], atol=1e-5)
    reordered = replies(llama_model, PROMPTS[::-1], [13, 12, 11], temperature=0.7, max_new_tokens=10)
    np.testing.assert_array_equal(reordered.tokens, sampled.tokens[::-1])


def test_seeds_choose_the_reply(llama_model):
    same_prompt = [PROMPTS[1]] * 3
    out = replies(llama_model, same_prompt, [1, 1, 2], temperature=0.7, max_new_tokens=10)
    tokens = np.asarray(out.tokens)
    np.testing.assert_array_equal(tokens[0], tokens[1])
    assert (tokens[0] != tokens[2]).any()


def test_temperature_zero_follows_the_most_likely_token():
    definition, params = model = define(CONFIGS["gpt2"])
    out = replies(model, PROMPTS, [0, 0, 0], temperature=0.0, max_new_tokens=10)
    apply = jax.jit(definition.apply)
    for row, prompt in enumerate(PROMPTS):
        whole = prompt + np.asarray(out.tokens[row]).tolist()
        logits = np.asarray(apply(params, np.asarray([whole + [0] * (17 - len(whole))]))[0])
        greedy = logits[len(prompt) - 1 : len(prompt) + 9].argmax(-1)
        np.testing.assert_array_equal(out.tokens[row], greedy)


def test_stop_sequences_end_a_reply(llama_model, sampled):
    """The same draws as without stopping, up to the first end; the pad id, 0 and mask 0 after it."""
    free = np.asarray(sampled.tokens).tolist()
    stop = ((free[0][4],), tuple(free[1][4:6]), tuple(free[2][4:7]), (PAD,) * 11)
    out = replies(llama_model, PROMPTS, [11, 12, 13], stop=stop, temperature=0.7, max_new_tokens=10)
    lengths = [
        next(n for n in range(1, 11) if any(tuple(row[max(n - len(s), 0) : n]) == s for s in stop))
        for row in free
    ]
    assert lengths[0] <= 5 and lengths[1] <= 6 and lengths[2] <= 7
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(out.tokens[row], free[row][:length] + [PAD] * (10 - length))
        np.testing.assert_array_equal(out.mask[row], [1] * length + [0] * (10 - length))
        assert (np.asarray(out.log_probs[row, length:]) == 0).all()
    assert np.asarray(out.stopped).all()
    assert int(out.step) == max(lengths), "decoding goes on although every reply has stopped"


def test_ends_with_by_hand():
    tokens = jnp.asarray([[1, 2, 3, 0], [3, 1, 2, 0]])
    assert ends_with(tokens, jnp.int32(2), (2, 3)).tolist() == [True, False]
    assert ends_with(tokens, jnp.int32(2), (1, 2)).tolist() == [False, True]
    # Only drawn slots count: at slot 0 no two tokens have been drawn.
    assert ends_with(tokens, jnp.int32(0), (1, 2)).tolist() == [False, False]
    assert ends_with(tokens, jnp.int32(0), (1,)).tolist() == [True, False]


def numpy_filter(logits, top_k, top_p):
    """Which tokens stay, by sorting and adding up in a loop; ties by index."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    if top_k:
        order = order[:top_k]
    weights = np.exp(logits[order] - logits.max())
    weights, kept, mass = weights / weights.sum(), [], 0.0
    for token, weight in zip(order, weights, strict=True):
        if mass >= top_p:
            break
        kept.append(token)
        mass += weight
    return set(kept)


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (1, 1.0), (5, 1.0), (0, 0.5), (0, 0.95), (6, 0.7), (99, 1e-9)]
)
def test_filters_equal_a_numpy_twin(top_k, top_p):
    logits = np.random.default_rng(0).normal(0, 2, (20, V)).astype(np.float32)
    some, ids = jnp.asarray(logits), np.tile(np.arange(V), (20, 1))
    if 0 < top_k < V:
        some, ids = shortlist(some, top_k)
    some, ids = np.asarray(nucleus(some, top_p)), np.asarray(ids)
    for row in range(20):
        stays = np.isfinite(some[row])
        assert set(ids[row, stays].tolist()) == numpy_filter(logits[row].astype(np.float64), top_k, top_p)
        np.testing.assert_array_equal(some[row, stays], logits[row, ids[row, stays]])


def test_draws_follow_the_filtered_distribution():
    logits = jnp.log(jnp.asarray([0.4, 0.3, 0.2, 0.1]))
    settings = SamplingConfig(temperature=0.5, top_k=3)
    keys = request_keys(range(20_000))
    drawn = np.asarray(jax.jit(lambda k: sample(jnp.tile(logits, (20_000, 1)), k, settings))(keys))
    shares = np.bincount(drawn, minlength=4) / 20_000
    # Temperature 1/2 squares the probabilities: 16, 9, 4 of 29. A share's deviation is 0.0035.
    np.testing.assert_allclose(shares, [16 / 29, 9 / 29, 4 / 29, 0], atol=0.014)
    assert shares[3] == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": -1.0}, "temperature\n.*greater than or equal to 0"),
        ({"top_p": 0.0}, "top_p\n.*greater than 0"),
        ({"max_new_tokens": 0}, "max_new_tokens\n.*greater than or equal to 1"),
    ],
)
def test_impossible_sampling_is_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        SamplingConfig(**settings)


def test_prompts_that_do_not_fit_are_refused(llama_model):
    with pytest.raises(ValueError, match="prompt 1 has 0 tokens"):
        left_pad([[1], []], PAD, 4)
    with pytest.raises(ValueError, match="40 prompt tokens and 10 new ones exceed the context length of 48"):
        replies(llama_model, [[1] * 40], [0], max_new_tokens=10)


class Letters:
    """A tokenizer whose id i is the letter with code 64 + i."""

    pad_id = PAD

    def token_bytes(self, id):
        return bytes([64 + id])

    def decode(self, ids):
        return b"".join(map(self.token_bytes, ids)).decode()


def cut_at_stop(reply, stop):
    """The letters before the first stop sequence to end; the longest of those that end together."""
    for end in range(1, len(reply) + 1):
        if hits := [len(s) for s in stop if reply[:end].endswith(s)]:
            return reply[: end - max(hits)]
    return reply


def test_streamed_pieces_are_the_completed_reply(llama_model):
    """Stop sequences of three, two and one letters of the replies, and one that begins but never ends."""
    settings = SamplingConfig(temperature=0.7, max_new_tokens=12)
    seeds = [11, 12, 13]
    free = TextEngine(*llama_model, Letters(), ()).complete(PROMPTS, settings, seeds)
    assert [len(reply) for reply in free] == [12, 12, 12]
    stop = [free[0][6:9], free[1][4:6], free[1][5], free[2][2] + "@"]
    engine = TextEngine(*llama_model, Letters(), [[ord(letter) - 64 for letter in s] for s in stop])
    completed = engine.complete(PROMPTS, settings, seeds)
    assert completed == [cut_at_stop(reply, stop) for reply in free]
    assert completed != free
    for prompt, seed, reply in zip(PROMPTS, seeds, completed, strict=True):
        assert "".join(engine.stream(prompt, settings, seed)) == reply


def test_batch_size_does_not_change_replies(llama_model):
    engine = TextEngine(*llama_model, Letters(), ())
    settings = SamplingConfig(temperature=0.7, max_new_tokens=6)
    prompts, seeds = [PROMPTS[i % 3] for i in range(5)], list(range(5))
    together = engine.complete(prompts, settings, seeds)
    assert engine.complete(prompts, settings, seeds, batch_size=2) == together
    assert len(set(together)) > 1


def reciter(ids, vocab_size):
    """A model that says `ids` in order: its hidden state is its position, and each position has its token."""
    context = 32 + len(ids)
    config = gpt2(
        "124M", vocab_size=vocab_size, context_length=context, width=context, layers=1, heads=1, tied=False
    )
    definition = ModelDefinition(LanguageModel, config)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), definition.abstract)
    decoder = params["decoder"] | {"positions": jnp.eye(context)}
    decoder["norm"] = {"scale": jnp.ones(context), "bias": jnp.zeros(context)}
    output = jnp.zeros((context, vocab_size)).at[jnp.arange(len(ids)), jnp.asarray(ids)].set(1.0)
    return definition, {"decoder": decoder, "unembedding": output}


def test_characters_split_over_tokens(tokenizer):
    """A character is streamed whole; bytes that are no text become the same marks as in a whole reply."""
    text, broken = "Gödel → 日本語 🙂!", b"\xa9ab\xc3(\xf0\x9f"
    ids = tokenizer.encode(text)
    assert len(ids) > len(text), "some characters must take several tokens for this test to mean anything"
    byte = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    end = tokenizer.im_end_id
    recited = [*(byte[bytes([b])] for b in broken), end, *ids, end]
    engine = TextEngine(*reciter(recited, tokenizer.vocab_size), tokenizer, [[end]])
    settings = SamplingConfig(temperature=0.0, max_new_tokens=len(ids) + 1)
    # A prompt of n tokens makes the model go on from the n-th token it recites.
    prompts = [[9], [9] * (len(broken) + 2)]
    marked = broken.decode("utf-8", "replace")
    assert engine.complete(prompts, settings, [0, 0]) == [marked, text]
    assert "".join(engine.stream(prompts[0], settings)) == marked
    pieces = list(engine.stream(prompts[1], settings))
    assert "".join(pieces) == text
    assert all(piece and "\ufffd" not in piece for piece in pieces)
