"""The losses of pairs, of reward models and of policies, against trl's trainers, value and gradient.

trl has them inside its trainers, whose methods are run here on a stand-in whose model returns what was drawn:
rewards; log-probabilities as themselves for trl 1.16, and for trl 1.12 as logits of two tokens.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trl_trainers import stand_in, torch

from gptjax.losses.preference import dpo_loss, ipo_loss, kto_loss, kto_reference_point, orpo_loss
from gptjax.losses.ranking import pairwise_loss, ranking_loss

BETA, B, L = 0.3, 5, 9
REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins")


@pytest.fixture(scope="module")
def case():
    """Log-probabilities a token of chosen, then of rejected completions, their masks, sums of a reference."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, L, 2 * B)
    mask = np.arange(L) >= L - lengths[:, None]
    tokens = (-rng.gamma(1.0, 1.0, (2 * B, L - 1)) * mask[:, 1:]).astype(np.float32)
    reference = (tokens.sum(1) + rng.normal(0, 2, 2 * B)).astype(np.float32)
    return tokens, mask, reference


def outputs_of(log_probs):
    nothing = torch.zeros(log_probs.shape)
    given = {"entropy": nothing, "mean_logits": nothing, "is_top1": nothing > 0}
    known = torch.where(log_probs == 0, -1.0, log_probs)  # 0 is outside the mask
    logits = torch.stack([known, torch.log(-torch.expm1(known))], -1)
    logits = torch.nn.functional.pad(logits, (0, 0, 0, 1))  # nothing is asked of the last
    return lambda **_: SimpleNamespace(log_probs=log_probs, logits=logits, **given)


def their_dpo(case, kind, label_smoothing=0.0):
    """Loss, metrics and gradient per completion of trl's `DPOTrainer`."""
    from trl import DPOTrainer

    tokens, mask, reference = case
    log_probs = torch.tensor(tokens, requires_grad=True)
    trainer = stand_in(
        beta=BETA,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        label_smoothing=label_smoothing,
        use_weighting=False,
    )
    inputs = {
        "input_ids": torch.zeros(mask.shape, dtype=torch.long),
        "attention_mask": torch.ones(mask.shape, dtype=torch.long),
        "completion_mask": torch.tensor(mask.astype(np.int64)),
        "ref_chosen_logps": torch.tensor(reference[: len(reference) // 2]),
        "ref_rejected_logps": torch.tensor(reference[len(reference) // 2 :]),
    }
    loss = DPOTrainer._compute_loss(trainer, outputs_of(log_probs), inputs, False)
    loss.backward()
    metrics = {name: values[0] for name, values in trainer._metrics["train"].items() if name in REWARDS}
    return loss.item(), metrics, log_probs.grad[:, -1].numpy()


def assert_equal(ours, theirs):
    (loss, metrics), gradient = ours
    their_loss, their_metrics, their_gradient = theirs
    np.testing.assert_allclose(loss, their_loss, rtol=1e-5)
    np.testing.assert_allclose(gradient, their_gradient, rtol=1e-4, atol=1e-7)
    for name, value in their_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)


def paired(loss):
    """Value and gradient of a loss of chosen and rejected log-probabilities `[2 B]`."""
    return jax.value_and_grad(lambda x: loss(x[: len(x) // 2], x[len(x) // 2 :]), has_aux=True)


def halves(x):
    return x[: len(x) // 2], x[len(x) // 2 :]


def test_dpo(case):
    tokens, _, reference = case
    ours = paired(lambda c, r: dpo_loss(c, r, *halves(reference), beta=BETA))(jnp.asarray(tokens.sum(1)))
    theirs = their_dpo(case, "sigmoid")
    assert set(theirs[1]) == set(REWARDS)
    assert_equal(ours, theirs)


def test_dpo_with_label_smoothing(case):
    # trl smooths in "aot", which of a batch of one pair is DPO.
    one = tuple(x[[0, B]] for x in case)
    ours = paired(lambda c, r: dpo_loss(c, r, *halves(one[2]), beta=BETA, label_smoothing=0.2))(
        jnp.asarray(one[0].sum(1))
    )
    assert_equal(ours, their_dpo(one, "aot", label_smoothing=0.2))


def test_ipo(case):
    tokens, mask, reference = case
    counts = dict(zip(("chosen_tokens", "rejected_tokens"), halves(mask.sum(1)), strict=True))
    ours = paired(lambda c, r: ipo_loss(c, r, *halves(reference), beta=BETA, **counts))(
        jnp.asarray(tokens.sum(1))
    )
    loss, _, gradient = their_dpo(case, "ipo")  # whose reward metrics are not divided by the tokens
    assert_equal(ours, (loss, {}, gradient))


def test_kto(case):
    from trl import KTOTrainer

    tokens, mask, reference = case
    other = (tokens.sum(1) - 1, tokens.sum(1) - 3)  # of replies to other prompts: policy, reference
    log_probs = torch.tensor(tokens, requires_grad=True)
    labels = np.random.default_rng(1).random(2 * B) < 0.4
    trainer = stand_in(
        beta=BETA,
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type="kto",
        desirable_weight=1.5,
        undesirable_weight=0.8,
        _compute_kl_logps=lambda model, batch: torch.tensor(other[0]),
    )
    batch = {
        "input_ids": torch.zeros(mask.shape, dtype=torch.long),
        "attention_mask": torch.ones(mask.shape, dtype=torch.long),
        "completion_mask": torch.tensor(mask.astype(np.int64)),
        "label": torch.tensor(labels),
        "ref_logps": torch.tensor(reference),
        "ref_KL_logps": torch.tensor(other[1]),
    }
    theirs = KTOTrainer._compute_loss(trainer, outputs_of(log_probs), batch, False)
    theirs.backward()
    point = kto_reference_point(jnp.asarray(other[0]), jnp.asarray(other[1]))
    np.testing.assert_allclose(point, trainer._metrics["train"]["kl"][0], rtol=1e-5)
    assert point > 0

    def loss(x):
        weights = {"desirable_weight": 1.5, "undesirable_weight": 0.8}
        return kto_loss(x, jnp.asarray(reference), labels, point, beta=BETA, **weights)

    ours = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(tokens.sum(1)))
    assert_equal(ours, (theirs.item(), {}, log_probs.grad[:, -1].numpy()))


def test_orpo(case):
    from trl.experimental.orpo import ORPOTrainer

    tokens, mask, _ = case
    counts = mask.sum(1)
    x = torch.tensor(tokens.sum(1), requires_grad=True)
    means = x / torch.tensor(counts)
    found = ORPOTrainer.odds_ratio_loss(stand_in(beta=BETA), *halves(means))
    # The trainer adds the loss of fine-tuning, over prompt and reply; ours is that of the reply, by itself.
    loss = -found[0].mean() - halves(means)[0].mean()
    loss.backward()
    metrics = {"rewards/chosen": found[1].mean(), "rewards/rejected": found[2].mean()}
    ours = paired(lambda c, r: orpo_loss(c, r, *halves(counts), beta=BETA))(jnp.asarray(tokens.sum(1)))
    assert_equal(ours, (loss.item(), metrics, x.grad.numpy()))


@pytest.mark.parametrize("centring", [0.0, 0.2])
@pytest.mark.parametrize("margin_scale", [0.0, 1.0])
def test_reward_model(margin_scale, centring):
    from trl import RewardTrainer

    rng = np.random.default_rng(2)
    rewards, margin = rng.normal(0, 2, (2, 6)).astype(np.float32), rng.gamma(1.0, 1.0, 6).astype(np.float32)
    x = torch.tensor(rewards.reshape(-1, 1), requires_grad=True)
    trainer = stand_in(args=SimpleNamespace(center_rewards_coefficient=centring or None))
    given = {"margin": torch.tensor(margin)} if margin_scale else {}
    inputs = {"attention_mask": torch.ones(12, 3)} | given
    loss = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=x), inputs)
    loss.backward()
    metrics = {name: trainer._metrics["train"][name][0] for name in ("accuracy", "margin")}
    theirs = loss.item(), metrics, x.grad.numpy().reshape(2, 6)

    def of_pairs(rewards):
        return pairwise_loss(*rewards, margin_scale * margin, centring=centring)

    def of_rankings(rewards):
        # The first of two completions has the margin as its human score, the other 0.
        scores = jnp.stack([margin, jnp.zeros(6)], axis=1)
        return ranking_loss(rewards.T, scores, jnp.ones((6, 2)), margin_scale=margin_scale, centring=centring)

    for ours in (of_pairs, of_rankings):
        assert_equal(jax.value_and_grad(ours, has_aux=True)(jnp.asarray(rewards)), theirs)
