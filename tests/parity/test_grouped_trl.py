"""RLOO and GRPO against trl's trainers: advantages, losses, clipping and gradients.

The losses are run on a stand-in that is given log-probabilities. What makes the advantages is no function:
the lines are taken from the installed file and run on the arrays of the test.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trl_trainers import lines_of, stand_in, torch, trl

from gptjax.generation.sampling import SamplingConfig
from gptjax.losses.group_advantages import group_normalised_advantages, leave_one_out_advantages
from gptjax.losses.masked import token_weights
from gptjax.losses.ppo import kl_loss, policy_loss
from gptjax.stages.grouped import GroupedConfig, count_totals, make_experience, make_grouped_loss
from gptjax.stages.rollout import Rollout

B, K, T, CLIP, KL = 6, 3, 7, 0.2, 0.3
TRAINERS = {"rloo": trl.RLOOTrainer, "grpo": trl.GRPOTrainer, "dr_grpo": trl.GRPOTrainer}


@pytest.fixture(scope="module")
def arrays():
    """Log-probabilities of replies of 1 to 7 tokens by the policy that drew, the trained one, a reference."""
    rng = np.random.default_rng(0)
    mask = (np.arange(T) < np.array([1, 7, 4, 2, 6, 3])[:, None]).astype(np.float32)
    old = -rng.gamma(1.0, 1.0, (B, T)) * mask
    moved, apart = rng.normal(0, 0.3, (2, B, T)) * mask
    rewards = rng.normal(size=B)
    found = {"mask": mask, "old": old, "new": old + moved, "ref": old + apart, "rewards": rewards}
    return {name: array.astype(np.float32) for name, array in found.items()}


def their_advantages(estimator, arrays, kl_coef):
    """Of rewards from which RLOO takes its KL; GRPO has none here."""
    trainer = SimpleNamespace(
        beta=kl_coef,
        normalize_advantages=False,
        scale_rewards="none" if estimator == "dr_grpo" else "group",
        multi_objective_aggregation="sum_then_normalize",
    )
    module = __import__(TRAINERS[estimator].__module__, fromlist=["nanstd"])
    names = {
        "torch": torch,
        "nanstd": module.nanstd,
        "gather": lambda x: x,
        "self": trainer,
        "num_generations": K,
        "rewards": torch.tensor(arrays["rewards"]),
        "old_per_token_logps": torch.tensor(arrays["old"]),
        "ref_per_token_logps": torch.tensor(arrays["ref"]),
        "completion_mask": torch.tensor(arrays["mask"]),
    }
    ends = "mean_grouped_rewards =", "advantages = advantages / (std_rewards"
    if estimator == "rloo":
        ends = "# Include the KL penalty", "advantages = torch.nan_to_num"
    exec(lines_of(TRAINERS[estimator]._generate_and_score_completions, *ends), names)
    return names["advantages"].numpy()


def their_loss(estimator, arrays, advantages, *, loss_type="grpo", level="token", beta=0.0):
    """Loss, clipped share and gradient per token."""
    new = torch.tensor(arrays["new"], requires_grad=True)
    trainer = stand_in(
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        beta=beta,
        epsilon_low=CLIP,
        epsilon_high=CLIP,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        loss_type=loss_type,
        max_completion_length=T,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=lambda *_, **__: (new, torch.zeros(B, T), None),
    )
    old = torch.tensor(arrays["old"])
    inputs = {
        "prompt_ids": torch.zeros(B, 1, dtype=torch.long),
        "prompt_mask": torch.ones(B, 1, dtype=torch.long),
        "completion_ids": torch.zeros(B, T, dtype=torch.long),
        "completion_mask": torch.tensor(arrays["mask"]).long(),
        "advantages": torch.tensor(advantages),
        "old_per_token_logps": old,
        "old_logps": old.sum(1),
        "ref_per_token_logps": torch.tensor(arrays["ref"]),
    }
    loss = TRAINERS[estimator]._compute_loss(trainer, None, inputs)
    loss.backward()
    return loss.item(), trainer._metrics["train"]["clip_ratio/region_mean"][0], new.grad.numpy()


def our_step(arrays, monkeypatch, **settings):
    """The stage's batch, and its loss, clipped share and gradient per token."""
    config = GroupedConfig(
        sampling=SamplingConfig(max_new_tokens=T),
        iterations=1,
        batch_size=B,
        group_size=K,
        clip=CLIP,
        **settings,
    )
    mask, ones = jnp.asarray(arrays["mask"]), jnp.ones((B, 1), jnp.int32)
    rollout = Rollout(ones, ones > 0, jnp.zeros((B, T), jnp.int32), mask, mask, jnp.ones(B, bool))
    batch, _ = make_experience(config)(
        rollout, jnp.asarray(arrays["rewards"]), arrays["old"], 0 * mask, arrays["ref"]
    )
    asked = "gptjax.stages.grouped.response_log_probs"
    monkeypatch.setattr(asked, lambda language, log_probs, *_: (log_probs, None))
    loss = jax.value_and_grad(make_grouped_loss(config, None), has_aux=True)
    (value, metrics), gradient = loss(jnp.asarray(arrays["new"]), batch, count_totals(batch), None)
    return batch, (value, metrics["policy/clipfrac_avg"], gradient)


def assert_equal(ours, theirs):
    for found, wanted in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def at_ratio_1(arrays):
    return arrays | {"new": arrays["old"]}


@pytest.mark.parametrize("kl_coef", [0.0, KL])
def test_rloo(arrays, monkeypatch, kl_coef):
    """trl's ratio is that of a whole reply; at ratio 1 the gradient is the same as that of its tokens."""
    advantages = their_advantages("rloo", arrays, kl_coef)
    batch, (loss, _, gradient) = our_step(arrays, monkeypatch, kl_coef=kl_coef, ratio="reply")
    np.testing.assert_allclose(batch["advantages"], advantages, rtol=1e-4, atol=1e-5)
    their_value, clipped, their_gradient = their_loss("rloo", arrays, advantages)
    assert 0 < clipped < 1
    assert_equal((loss, gradient), (their_value, their_gradient))

    _, (_, _, gradient) = our_step(at_ratio_1(arrays), monkeypatch, kl_coef=kl_coef)
    assert_equal([gradient], [their_loss("rloo", at_ratio_1(arrays), advantages)[2]])


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_grpo(arrays, monkeypatch, level):
    """The mean over replies of the mean over each one's tokens; by sequences it is GSPO."""
    advantages = their_advantages("grpo", arrays, 0.0)
    ratio = {"token": "token", "sequence": "reply"}[level]
    batch, (loss, share, gradient) = our_step(arrays, monkeypatch, kl_coef=0.0, estimator="grpo", ratio=ratio)
    np.testing.assert_allclose(batch["advantages"], advantages, rtol=1e-4, atol=1e-5)
    their_value, clipped, their_gradient = their_loss("grpo", arrays, advantages, level=level)
    assert 0 < clipped < 1
    assert_equal((loss, gradient), (their_value, their_gradient))
    if level == "token":
        np.testing.assert_allclose(share, clipped, rtol=1e-5)


def test_dr_grpo(arrays, monkeypatch):
    """trl divides by the number of slots as well."""
    advantages = their_advantages("dr_grpo", arrays, 0.0)
    batch, ours = our_step(arrays, monkeypatch, kl_coef=0.0, estimator="dr_grpo")
    np.testing.assert_allclose(batch["advantages"], advantages, rtol=1e-4, atol=1e-5)
    loss, clipped, gradient = their_loss("dr_grpo", arrays, advantages, loss_type="dr_grpo")
    assert_equal(ours, (T * loss, clipped, T * gradient))


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_replies_that_cannot_be_scored(arrays, estimator):
    rewards = arrays["rewards"].copy()
    rewards[4] = np.nan
    theirs = their_advantages(estimator, arrays | {"rewards": rewards}, 0.0)
    advantages = {"rloo": leave_one_out_advantages, "grpo": group_normalised_advantages}[estimator]
    groups = rewards.reshape(-1, K)
    ours = advantages(jnp.asarray(groups), ~np.isnan(groups))
    np.testing.assert_allclose(ours.reshape(-1), np.nan_to_num(theirs), rtol=1e-4, atol=1e-6)


AGGREGATES = {
    "bnpo": "token_mean",
    "grpo": "seq_mean_token_mean",
    "luspo": "seq_mean_token_sum",
    "dr_grpo": "seq_mean_token_sum_norm",
}


@pytest.mark.parametrize("loss_type", AGGREGATES)
def test_means_over_a_batch_with_the_kl_in_the_loss(arrays, loss_type):
    advantages = their_advantages("grpo", arrays, 0.0)
    mask, aggregate = jnp.asarray(arrays["mask"]), AGGREGATES[loss_type]
    weights = token_weights(mask, aggregate)
    denominator = mask.sum() if aggregate == "token_mean" else B

    def ours(new):
        spread = jnp.broadcast_to(advantages[:, None], new.shape)
        counts = {"denominator": denominator}
        surrogate, _ = policy_loss(new, arrays["old"], spread, weights, clip=CLIP, **counts)
        return surrogate + KL * kl_loss(new, arrays["ref"], weights, estimator="k3", **counts)[0]

    value, gradient = jax.value_and_grad(ours)(jnp.asarray(arrays["new"]))
    theirs = their_loss("grpo", arrays, advantages, loss_type=loss_type, beta=KL)
    assert_equal((value, gradient), (theirs[0], theirs[2]))
