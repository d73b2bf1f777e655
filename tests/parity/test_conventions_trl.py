"""The `trl_1_12` conventions against trl 1.12.0, the last release with PPO.

What TRL writes inside `PPOTrainer.train` is no function: the lines are taken from the installed file and run
on the arrays of the test.
"""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trl_trainers import lines_of

from gptjax.generation.sampling import SamplingConfig
from gptjax.losses.masked import masked_mean, masked_variance, masked_whiten
from gptjax.losses.ppo import policy_loss, value_loss
from gptjax.losses.rewards import eos_penalty, token_rewards, with_slot_after
from gptjax.stages.conventions import trl_1_12
from gptjax.stages.experience import credit
from gptjax.stages.ppo import PpoConfig
from gptjax.stages.rollout import Rollout, cut_replies, reward_scores

REASON = "trl 1.12.0 is not installed (pip install trl==1.12.0); later releases have no PPO"
torch = pytest.importorskip("torch", reason="torch is not installed (pip install torch)")
trl = pytest.importorskip("trl.experimental.ppo.ppo_trainer", reason=REASON)
pieces = pytest.importorskip("trl.experimental.utils", reason=REASON)

B, T, P, V, PAD, END = 5, 7, 3, 11, 0, 1
CONFIG = trl_1_12(
    PpoConfig(sampling=SamplingConfig(), iterations=10, batch_size=B, minibatches=1, corpora={})
)


def to_torch(x):
    return torch.tensor(np.asarray(x))


@pytest.fixture(scope="module")
def arrays():
    """Replies of 1, 3, 6, 7 and 7 tokens, the last without an end, and what models say of every slot."""
    rng = np.random.default_rng(0)
    responses = rng.integers(2, V, (B, T))
    for row, place in enumerate((0, 2, 5, 6)):
        responses[row, place] = END
    found = {"responses": responses, "scores": rng.normal(size=B).astype(np.float32)}
    names = ("logprobs", "ref_logprobs", "new_logprobs", "values", "vpred")
    found |= dict(zip(names, rng.normal(-1, 0.5, (5, B, T)).astype(np.float32), strict=True))
    found["new_logprobs"] = found["logprobs"] + rng.normal(0, 0.3, (B, T)).astype(np.float32)
    found["vpred"] = found["values"] + rng.normal(0, 0.3, (B, T)).astype(np.float32)
    return found


def lines_of_train(first: str, last: str) -> str:
    return lines_of(trl.PPOTrainer.train, first, last)


def their_experience(arrays, **settings):
    """TRL's rewards, advantages and returns, and the masks and filled arrays that its loss reads."""
    args = {"missing_eos_penalty": 1.0, "kl_estimator": "k1", "kl_coef": 0.05, "whiten_rewards": False}
    args |= {"gamma": 1.0, "lam": 0.95} | settings
    names = {key: torch.tensor(x) for key, x in arrays.items()}
    postprocessed = trl.truncate_response(END, PAD, names["responses"])
    names |= {
        "torch": torch,
        "args": SimpleNamespace(**args),
        "self": SimpleNamespace(
            args=SimpleNamespace(**args), processing_class=SimpleNamespace(eos_token_id=END)
        ),
        "masked_whiten": trl.masked_whiten,
        "INVALID_LOGPROB": trl.INVALID_LOGPROB,
        "postprocessed_responses": postprocessed,
        "sequence_lengths": pieces.first_true_indices(postprocessed == PAD) - 1,
    }
    exec(lines_of_train("contain_eos_token = ", "advantages = torch.masked_fill"), names)
    return names


def our_mask(responses):
    ended = np.cumsum(responses == END, axis=1) - (responses == END) > 0
    return (~ended).astype(np.float32)


@pytest.mark.parametrize("whiten_rewards", [False, True])
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_rewards_advantages_and_returns(arrays, whiten_rewards, estimator):
    theirs = their_experience(arrays, whiten_rewards=whiten_rewards, kl_estimator=estimator)
    config = replace(CONFIG, whiten_rewards=whiten_rewards, kl_estimator=estimator)
    mask = our_mask(arrays["responses"])
    seen = with_slot_after(mask)
    scores = eos_penalty(
        arrays["scores"],
        (arrays["responses"] == END).any(1),
        kind=config.missing_eos,
        penalty=config.missing_eos_penalty,
    )
    rewards = token_rewards(
        scores,
        arrays["logprobs"],
        arrays["ref_logprobs"],
        mask,
        kl_coef=config.kl_coef,
        kl_estimator=config.kl_estimator,
        score_at=config.conventions.score_at,
    )
    if not whiten_rewards:
        np.testing.assert_allclose(rewards, theirs["rewards"], rtol=1e-5, atol=1e-6)
    advantages, returns = credit(config, rewards, arrays["values"] * seen, mask, seen)
    np.testing.assert_allclose(advantages, theirs["advantages"], rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(returns, theirs["returns"], rtol=1e-4, atol=2e-6)


def test_losses_and_their_gradients(arrays):
    theirs = their_experience(arrays)
    new, vpred = (torch.tensor(arrays[key], requires_grad=True) for key in ("new_logprobs", "vpred"))
    args = SimpleNamespace(cliprange=0.2, cliprange_value=0.2, vf_coef=0.1)
    rows = {"mb_advantage": "advantages", "mb_logprobs": "logprobs", "mb_return": "returns"}
    names = theirs | {name: theirs[key] for name, key in rows.items()} | {"args": args}
    names |= {
        "mb_values": theirs["values"],
        "micro_batch_inds": slice(None),
        "masked_mean": trl.masked_mean,
        "new_logprobs": torch.masked_fill(new, theirs["padding_mask"], trl.INVALID_LOGPROB),
        "vpred": torch.masked_fill(vpred, theirs["padding_mask_p1"], 0),
    }
    exec(lines_of_train("vpredclipped = ", "loss = pg_loss"), names)
    names["loss"].backward()

    mask = our_mask(arrays["responses"])
    seen = with_slot_after(mask)
    made = {key: jnp.asarray(theirs[key].numpy()) for key in ("advantages", "returns", "values")}

    def ours(log_probs, values):
        policy, _ = policy_loss(log_probs, arrays["logprobs"], made["advantages"], mask, clip=CONFIG.clip)
        value, _ = value_loss(values, made["values"], made["returns"], seen, clip=CONFIG.value_clip)
        return policy + CONFIG.conventions.value_coef * value, (policy, value)

    (_, losses), gradients = jax.value_and_grad(ours, (0, 1), has_aux=True)(
        jnp.asarray(arrays["new_logprobs"]), jnp.asarray(arrays["vpred"])
    )
    for found, wanted in zip(losses, (names["pg_loss"], names["vf_loss"]), strict=True):
        np.testing.assert_allclose(found, wanted.item(), rtol=1e-5)
    for found, wanted in zip(gradients, (new.grad, vpred.grad), strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-7)


def test_masked_statistics(arrays):
    mask, x = our_mask(arrays["responses"]), arrays["values"]
    theirs = torch.tensor(x), torch.tensor(mask)
    np.testing.assert_allclose(masked_mean(x, mask), trl.masked_mean(*theirs), rtol=1e-6)
    np.testing.assert_allclose(masked_variance(x, mask, bessel=True), trl.masked_var(*theirs), rtol=1e-5)
    np.testing.assert_allclose(masked_variance(x, mask), trl.masked_var(*theirs, unbiased=False), rtol=1e-5)
    for shift_mean in (True, False):
        wanted = trl.masked_whiten(*theirs, shift_mean=shift_mean).numpy() * mask
        found = masked_whiten(x, mask, bessel=True, shift_mean=shift_mean)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def rollout_of(arrays) -> Rollout:
    prompt = jnp.full((B, P), 5).at[1, 0].set(PAD)
    whole = jnp.ones((B, T), jnp.float32)
    return Rollout(prompt, prompt != PAD, jnp.asarray(arrays["responses"]), whole, whole, jnp.zeros(B, bool))


def test_truncation_and_the_token_that_is_scored(arrays):
    cut, responses = cut_replies(rollout_of(arrays), (END,), 0), torch.tensor(arrays["responses"])
    truncated, mask = pieces.truncate_right(responses, END, PAD)
    np.testing.assert_array_equal(cut.mask, mask.numpy())
    np.testing.assert_array_equal(truncated, trl.truncate_response(END, PAD, responses))
    np.testing.assert_array_equal(cut.ended, (truncated == END).any(-1).numpy())

    table = np.random.default_rng(1).normal(size=V).astype(np.float32)
    scalar = SimpleNamespace(apply=lambda params, tokens, **_: params[tokens])
    weights = torch.nn.Embedding.from_pretrained(torch.tensor(table)[:, None])
    model = SimpleNamespace(
        base_model_prefix="trunk",
        trunk=lambda input_ids, **_: SimpleNamespace(hidden_states=[weights(input_ids)]),
        score=lambda hidden: hidden,
    )
    _, scores, _ = pieces.get_reward(model, torch.cat([to_torch(cut.prompt), truncated], 1), PAD, P)
    np.testing.assert_allclose(reward_scores(scalar, jnp.asarray(table), cut), scores.numpy(), rtol=1e-6)


def test_the_preset_has_the_library_s_defaults():
    theirs = trl.PPOConfig(output_dir="unused", use_cpu=True, bf16=False)
    pairs = {
        "num_ppo_epochs": CONFIG.epochs,
        "num_mini_batches": CONFIG.minibatches,
        "temperature": CONFIG.sampling.temperature,
        "gamma": CONFIG.gamma,
        "lam": CONFIG.gae_lambda,
        "cliprange": CONFIG.clip,
        "cliprange_value": CONFIG.value_clip,
        "kl_coef": CONFIG.kl_coef,
        "kl_estimator": CONFIG.kl_estimator,
        "whiten_rewards": CONFIG.whiten_rewards,
        "vf_coef": CONFIG.conventions.value_coef,
        "adam_beta1": CONFIG.optimizer.b1,
        "adam_beta2": CONFIG.optimizer.b2,
        "adam_epsilon": CONFIG.optimizer.epsilon,
        "weight_decay": CONFIG.optimizer.weight_decay,
        "lr_scheduler_type": CONFIG.optimizer.schedule,
    }
    assert {key: getattr(theirs, key) for key in pairs} == pairs
