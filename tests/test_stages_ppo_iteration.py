"""One PPO iteration against a twin in numpy that knows no padding, no masks and no rollout arrays."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import check_golden
from ppo_case import CONFIG, END, OPTIMIZER, PAD, ROUNDING, B, make_case, text_batch

from gptjax.generation.decode import decode
from gptjax.sharding.mesh import MeshConfig, make_mesh, place
from gptjax.stages.conventions import Conventions
from gptjax.stages.experience import reply_metrics
from gptjax.stages.ppo_iteration import PpoState, make_iteration, make_optimizers
from gptjax.stages.sharded import create_state

TEMPERATURE = CONFIG.sampling.temperature
CONFIG = dataclasses.replace(CONFIG, ema_decay=0.75, kl_target=2.0, kl_horizon=64.0)
KEY, START = jax.random.key(11), 1  # not iteration 0: there policy and reference must be the same


@pytest.fixture(scope="module")
def case():
    return make_case()


def run_iteration(case, config, texts):
    """State before, state after and metrics, on the host."""
    mesh = make_mesh(MeshConfig())
    optimizers = make_optimizers(config, case.language, case.scalar)
    policy = create_state(case.language, optimizers[0], mesh, params=case.policy)
    before = PpoState(
        step=jnp.int32(START),
        policy=policy,
        critic=create_state(case.scalar, optimizers[1], mesh, params=case.critic),
        ema=jax.tree.map(jnp.copy, policy.params),
        kl_coef=jnp.float32(config.kl_coef),
    )
    full_stops = {"vocab_size": 23, "token_bytes": lambda id: b"." if id % 3 == 0 else b""}
    tokenizer = SimpleNamespace(im_end_id=END, pad_id=PAD, **full_stops)
    models = (case.language, case.scalar, case.reference, case.reward)
    program = make_iteration(config, tokenizer, *models, texts, mesh)
    kept = jax.device_get(before)
    after, metrics = program(before, place(case.prompts, mesh), KEY)
    return kept, jax.device_get(after), {name: float(value) for name, value in metrics.items()}


@pytest.fixture(scope="module")
def iteration(case):
    return run_iteration(case, CONFIG, text_batch)


@pytest.fixture(scope="module")
def replies(case):
    """Prompt and reply of each request as lists of ids, and whether the reply ended by itself."""
    rollouts = jax.random.fold_in(KEY, 0)
    keys = jax.random.split(jax.random.fold_in(rollouts, START), B)

    @jax.jit
    def draw(params):
        prompts = (case.prompts["tokens"], case.prompts["mask"])
        arguments = {"sampling": CONFIG.sampling, "stop_sequences": ((END,),), "pad_id": PAD}
        return decode(case.language, params, *prompts, keys, **arguments)

    out = jax.device_get(draw(case.policy))
    rows = zip(case.prompts["tokens"], case.prompts["mask"], out.tokens, out.mask, strict=True)
    texts = [(p[m].tolist(), t[: int(k.sum())].tolist()) for p, m, t, k in rows]
    assert len({len(reply) for _, reply in texts}) > 2 and any(reply[-1] != END for _, reply in texts)
    return texts


def log_softmax(logits):
    logits = logits / TEMPERATURE
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


@pytest.fixture(scope="module")
def twin(case, replies):
    """Per reply: log-probabilities of policy and reference, entropies, values, score; lists of floats."""
    tokens = np.zeros((B, max(len(p) + len(r) for p, r in replies)), np.int32)
    for row, (prompt, reply) in zip(tokens, replies, strict=True):
        row[: len(prompt) + len(reply)] = prompt + reply
    language, scalar = jax.jit(case.language.apply), jax.jit(case.scalar.apply)
    policy, reference = (np.asarray(language(p, tokens), float) for p in (case.policy, case.reference))
    critic, reward = (np.asarray(scalar(p, tokens), float) for p in (case.critic, case.reward))
    rows = []
    for b, (prompt, reply) in enumerate(replies):
        before = [len(prompt) - 1 + t for t in range(len(reply))]  # what predicts token t stands before it
        own = [log_softmax(policy[b, place]) for place in before]
        other = [log_softmax(reference[b, place]) for place in before]
        score = reward[b, len(prompt) + len(reply) - 1]
        rows.append(
            {
                "own": [o[token] for o, token in zip(own, reply, strict=True)],
                "other": [o[token] for o, token in zip(other, reply, strict=True)],
                "entropy": [-(np.exp(o) * o).sum() for o in own],
                "value": [critic[b, place] for place in before],
                "raw": score,
                "score": score - (0.0 if reply[-1] == END else CONFIG.missing_eos_penalty),
            }
        )
    return rows


def advantages_and_returns(row):
    """Generalised advantages of one reply, from its end to its beginning."""
    rewards = [-CONFIG.kl_coef * (a - b) for a, b in zip(row["own"], row["other"], strict=True)]
    rewards[-1] += row["score"]
    advantage, next_value, advantages = 0.0, 0.0, []
    for reward, value in zip(rewards[::-1], row["value"][::-1], strict=True):
        advantage = reward + CONFIG.gamma * (next_value + CONFIG.gae_lambda * advantage) - value
        next_value = value
        advantages.insert(0, advantage)
    return advantages, [a + v for a, v in zip(advantages, row["value"], strict=True)], sum(rewards)


def test_objective_equals_the_twin(twin, iteration):
    kls = [sum(row["own"]) - sum(row["other"]) for row in twin]
    ratios = [np.array(row["own"]) - np.array(row["other"]) for row in twin]
    entropies = [row["entropy"] for row in twin]
    values = np.concatenate([row["value"] for row in twin])
    returns = np.concatenate([advantages_and_returns(row)[1] for row in twin])
    expected = {
        "objective/kl": np.mean(kls),
        "objective/kl_k2": np.mean([(r**2 / 2).sum() for r in ratios]),
        "objective/kl_k3": np.mean([(np.exp(-r) - 1 + r).sum() for r in ratios]),
        "objective/raw_scores": np.mean([row["raw"] for row in twin]),
        "objective/scores": np.mean([row["score"] for row in twin]),
        "objective/entropy": np.mean([sum(e) for e in entropies]),
        "objective/rlhf_reward": np.mean([advantages_and_returns(row)[2] for row in twin]),
        "objective/non_score_reward": -CONFIG.kl_coef * np.mean(kls),
        "objective/kl_coef": CONFIG.kl_coef,
        "policy/entropy_avg": np.mean(np.concatenate(entropies)),
        "val/response_length": np.mean([len(e) for e in entropies]),
        "val/num_eos_tokens": sum(row["raw"] == row["score"] for row in twin),
        "val/eos_rate": np.mean([row["raw"] == row["score"] for row in twin]),
        "val/empty_responses": 0,
        "critic/vf_explained_var": 1 - np.var(returns - values) / np.var(returns),
    }
    assert abs(expected["objective/kl"]) > 1e-3
    for name, value in expected.items():
        np.testing.assert_allclose(iteration[2][name], value, rtol=2e-5, atol=2e-6, err_msg=name)


def test_first_pass_losses_equal_the_twin(twin, iteration):
    parts = [advantages_and_returns(row) for row in twin]
    advantages, returns = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    whitened = (advantages - advantages.mean()) / np.sqrt(advantages.var() + 1e-8)
    values = np.concatenate([row["value"] for row in twin])
    metrics = iteration[2]
    # The ratio is 1 on the first pass, so nothing is clipped and the loss is the mean advantage: 0.
    np.testing.assert_allclose(metrics["loss/policy_avg"], -whitened.mean(), atol=1e-6)
    np.testing.assert_allclose(metrics["loss/value_avg"], ((values - returns) ** 2).mean() / 2, rtol=2e-5)
    np.testing.assert_allclose(metrics["val/ratio"], 1, atol=1e-6)
    assert metrics["policy/approxkl_avg"] < 1e-12
    assert metrics["policy/clipfrac_avg"] == metrics["val/clipfrac_avg"] == 0


def test_gradient_equals_that_of_the_twin_with_ptx(case, replies, twin, iteration):
    """The norm of the first update's gradient, from an objective written for unpadded rows."""
    parts = [advantages_and_returns(row)[0] for row in twin]
    flat = np.concatenate(parts)
    text = text_batch(0)
    tokens = np.zeros((B, max(len(p) + len(r) for p, r in replies)), np.int32)
    weight = np.zeros(tokens.shape, np.float32)
    for b, (prompt, reply) in enumerate(replies):
        tokens[b, : len(prompt) + len(reply)] = prompt + reply
        whitened = (np.array(parts[b]) - flat.mean()) / np.sqrt(flat.var() + 1e-8)
        weight[b, len(prompt) : len(prompt) + len(reply)] = whitened / len(flat)

    @jax.jit
    @jax.grad
    def gradient(params):
        log_probs = jax.nn.log_softmax(case.language.apply(params, tokens)[:, :-1] / TEMPERATURE)
        drawn = jnp.take_along_axis(log_probs, tokens[:, 1:, None], -1)[..., 0]
        # At a ratio of 1 the surrogate's gradient is that of advantage times log-probability.
        surrogate = -(weight[:, 1:] * drawn).sum()
        text_log_probs = jax.nn.log_softmax(case.language.apply(params, text["tokens"]))
        nll = -jnp.take_along_axis(text_log_probs, text["targets"][..., None], -1).mean()
        return surrogate + CONFIG.ptx_coef * nll

    squares = sum(float((np.asarray(g, float) ** 2).sum()) for g in jax.tree.leaves(gradient(case.policy)))
    np.testing.assert_allclose(iteration[2]["gradient_norm"], squares**0.5, rtol=2e-5)


def test_average_of_the_policies(iteration):
    before, after, _ = iteration
    assert after.policy.step == before.policy.step + 1 and after.step == START + 1
    for ema, old, new in zip(
        *map(jax.tree.leaves, (after.ema, before.policy.params, after.policy.params)), strict=True
    ):
        np.testing.assert_allclose(ema, 0.75 * old + 0.25 * new, atol=1e-6)
    drift = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (after.ema, before.ema)), strict=True)]
    assert max(drift) > 1e-4


def test_adaptive_kl_coefficient_is_part_of_the_state(twin, iteration):
    kl = np.mean([sum(row["own"]) - sum(row["other"]) for row in twin])
    error = np.clip(kl / 2.0 - 1, -0.2, 0.2)
    np.testing.assert_allclose(iteration[1].kl_coef, CONFIG.kl_coef * (1 + error * B / 64), rtol=1e-6)


def test_the_mismatch_of_sampler_and_training_by_hand():
    """The mean of exp |difference| over each reply's tokens: 1.5, 1.25, and a reply without tokens."""
    mask = jnp.array([[1.0, 1, 0], [1, 1, 1], [0, 0, 0]])
    drawn = jnp.log(jnp.array([[0.5, 0.25, 0.1], [0.5, 0.5, 0.75], [0.1, 0.1, 0.1]]))
    scored = jnp.log(jnp.array([[0.25, 0.25, 0.9], [0.5, 0.75, 0.6], [0.9, 0.9, 0.9]]))
    rollout = SimpleNamespace(mask=mask, sampler_log_probs=drawn)
    found = reply_metrics(rollout, scored, scored, jnp.zeros((3, 3)), jnp.zeros(3, bool))
    np.testing.assert_allclose(found["val/sampler_gap"], np.log(2), rtol=1e-6)
    np.testing.assert_allclose(found["max_seq_mult_prob_error"], (2 + 1) / 2, rtol=1e-6)
    np.testing.assert_allclose(found["mean_seq_mult_prob_error"], (1.5 + (1 + 1.5 + 1.25) / 3) / 2, rtol=1e-6)
    same = reply_metrics(rollout, drawn, drawn, jnp.zeros((3, 3)), jnp.zeros(3, bool))
    assert same["max_seq_mult_prob_error"] == same["mean_seq_mult_prob_error"] == 1


def stored(metrics):
    """Without what rounding alone decides."""
    decided = ("digest/", *ROUNDING)
    return {n: value for n, value in metrics.items() if "gap" not in n and not n.startswith(decided)}


def test_golden(iteration):
    check_golden("ppo", stored(iteration[2]))


@pytest.mark.slow
def test_golden_of_two_passes_in_two_parts(case):
    """Here the policy has left the rollout's: ratios differ from 1 and are clipped."""
    large = dataclasses.replace(OPTIMIZER, learning_rate=0.1)
    config = dataclasses.replace(CONFIG, epochs=2, minibatches=2, optimizer=large, value_optimizer=large)
    _, after, metrics = run_iteration(case, config, text_batch)
    assert after.policy.step == 4 and after.critic.step == 4
    assert metrics["policy/clipfrac_avg"] > 0.05 and metrics["val/ratio_var"] > 0.01
    assert metrics["val/clipfrac_avg"] > 0.05
    check_golden("ppo_passes", stored(metrics))


@pytest.mark.slow
def test_skipped_updates_are_not_hidden_by_a_good_one_at_the_end(case):
    calls = []

    def texts(number):
        calls.append(number)
        batch = text_batch(number)
        return batch if len(calls) == 4 else batch | {"loss_mask": batch["loss_mask"] * np.nan}

    _, _, metrics = run_iteration(case, dataclasses.replace(CONFIG, minibatches=4), texts)
    assert len(calls) == 4 and metrics["skipped"] == 3


def test_a_rollout_beyond_the_limit_is_not_learnt_from(case):
    kept, after, metrics = run_iteration(case, dataclasses.replace(CONFIG, kl_limit=1e-6), text_batch)
    assert metrics["objective/kl"] > 1e-6 and metrics["val/beyond_limit"] == 1
    assert after.step == kept.step + 1 and after.kl_coef == kept.kl_coef
    for name in ("policy", "critic"):
        jax.tree.map(np.testing.assert_array_equal, getattr(kept, name), getattr(after, name))
    wanted = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, kept.ema, kept.policy.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), after.ema, wanted)


@pytest.mark.slow
def test_replies_that_run_on_to_a_full_stop_are_learnt_from_whole(case):
    conventions = Conventions(cut_at=".", cut_after=2, whiten_over="minibatch", average_over="micro_batch")
    config = dataclasses.replace(CONFIG, conventions=conventions, minibatches=2, accumulate=2)
    before, after, metrics = run_iteration(case, config, text_batch)
    assert metrics["val/response_length"] == CONFIG.sampling.max_new_tokens
    assert 0 < metrics["val/num_eos_tokens"] and metrics["val/sampler_gap"] < 1e-5
    assert metrics["skipped"] == 0 and metrics["gradient_norm"] > 0 and metrics["val/gradient_norm"] > 0
    assert after.policy.step == before.policy.step + 2
