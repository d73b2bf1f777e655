import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.losses.group_advantages import group_normalised_advantages, leave_one_out_advantages
from gptjax.losses.masked import token_weights
from gptjax.losses.ppo import policy_loss

# One compilation a function instead of one an operation.
leave_one_out_advantages = jax.jit(leave_one_out_advantages)
group_normalised_advantages = jax.jit(group_normalised_advantages, static_argnames=("scale", "epsilon"))

REWARDS = jnp.array([[1.0, 0.0, -3.0, 5.0], [2.0, 7.0, -1.0, 0.0]])
VALID = jnp.array([[1, 1, 1, 1], [1, 1, 1, 0]])


def test_baselines_leave_the_reply_itself_out():
    # The golden of NeMo-Aligner's tests, its prompts sorted: baselines 2/3, 1, 2, -2/3 and 3, 1/2, 9/2.
    baselines = REWARDS - leave_one_out_advantages(REWARDS, VALID)
    np.testing.assert_allclose(baselines[0], [2 / 3, 1, 2, -2 / 3], rtol=1e-6)
    np.testing.assert_allclose(baselines[1, :3], [3, 1 / 2, 9 / 2], rtol=1e-6)
    assert leave_one_out_advantages(REWARDS, VALID)[1, 3] == 0


def test_group_normalised_by_hand():
    rewards = jnp.array([[1.0, 0.0, 0.0, 1.0]])
    deviation = (4 * 0.25 / 3) ** 0.5
    ours = group_normalised_advantages(rewards, jnp.ones((1, 4)), epsilon=0.1)
    np.testing.assert_allclose(ours, [[0.5, -0.5, -0.5, 0.5]] / np.array(deviation + 0.1), rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_both_match_a_loop_over_replies(seed):
    rng = np.random.default_rng(seed)
    rewards, valid = rng.normal(3, 2, (6, 5)).astype(np.float32), rng.random((6, 5)) < 0.7
    one_out, scaled, centred = (np.zeros((6, 5)) for _ in range(3))
    for g in range(6):
        for k in np.flatnonzero(valid[g]):
            others = [j for j in np.flatnonzero(valid[g]) if j != k]
            own = rewards[g, valid[g]].astype(np.float64)
            if others:
                one_out[g, k] = rewards[g, k] - rewards[g, others].astype(np.float64).mean()
                scaled[g, k] = (rewards[g, k] - own.mean()) / (own.std(ddof=1) + 1e-4)
                centred[g, k] = rewards[g, k] - own.mean()
    given = jnp.where(valid, rewards, jnp.nan), valid
    for ours, theirs in (
        (leave_one_out_advantages(*given), one_out),
        (group_normalised_advantages(*given), scaled),
        (group_normalised_advantages(*given, scale=False), centred),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-6)


def test_leave_one_out_is_dr_grpo_but_for_a_constant():
    every = jnp.ones((2, 4))
    ours = leave_one_out_advantages(REWARDS, every)
    np.testing.assert_allclose(ours, 4 / 3 * group_normalised_advantages(REWARDS, every, scale=False))


def test_a_constant_changes_no_advantage_and_a_scale_only_the_unscaled():
    moved, every = REWARDS + 100.0, jnp.ones((2, 4))
    for advantages in (leave_one_out_advantages, group_normalised_advantages):
        np.testing.assert_allclose(advantages(moved, every), advantages(REWARDS, every), atol=1e-5)
    scaled = group_normalised_advantages(8 * REWARDS, every, epsilon=0.0)
    np.testing.assert_allclose(scaled, group_normalised_advantages(REWARDS, every, epsilon=0.0), rtol=1e-6)
    np.testing.assert_allclose(
        leave_one_out_advantages(8 * REWARDS, every), 8 * leave_one_out_advantages(REWARDS, every)
    )


def test_equal_rewards_and_replies_that_are_alone_teach_nothing():
    third = jnp.full((1, 3), 0.1, jnp.float32)  # whose mean in float32 is another number
    assert not group_normalised_advantages(third, jnp.ones((1, 3)), epsilon=1e-12).any()
    alone = jnp.array([[1, 0, 0]])
    for advantages in (leave_one_out_advantages, group_normalised_advantages):
        assert not advantages(REWARDS[:1, :3], alone).any()
        assert not advantages(REWARDS[:1, :3], 0 * alone).any()


def test_rewards_keep_their_fraction():
    for advantages in (leave_one_out_advantages, group_normalised_advantages):
        with pytest.raises(TypeError, match="rewards have dtype int32"):
            advantages(jnp.array([[1, 0]]), jnp.ones((1, 2)))


def log_policy(logits, tokens):
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0]


def test_at_ratio_1_the_summed_loss_has_the_gradient_of_reinforce():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(4, 3, 5)), jnp.float32)
    tokens, lengths = rng.integers(0, 5, (4, 3)), np.array([3, 1, 2, 3])
    mask = (np.arange(3) < lengths[:, None]).astype(np.float32)
    advantages = leave_one_out_advantages(jnp.array([[0.5, 2.0, -1.0, 0.0]]), jnp.ones((1, 4)))[0]
    old = log_policy(logits, tokens)

    def surrogate(logits, aggregate):
        weights = token_weights(mask, aggregate)
        spread = jnp.broadcast_to(advantages[:, None], mask.shape)
        return policy_loss(log_policy(logits, tokens), old, spread, weights, clip=0.2, denominator=4)[0]

    def reinforce(logits, divide):
        per_reply = (log_policy(logits, tokens) * mask).sum(1) / divide
        return -(advantages * per_reply).mean()

    for aggregate, divide in (("seq_mean_token_sum", 1), ("seq_mean_token_mean", lengths)):
        ours, theirs = (
            jax.jit(jax.grad(surrogate), static_argnums=1)(logits, aggregate),
            jax.jit(jax.grad(reinforce))(logits, divide),
        )
        assert jnp.abs(theirs).max() > 0.01
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
