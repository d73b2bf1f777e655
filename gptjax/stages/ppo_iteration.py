"""One iteration of PPO: draw replies, score them, estimate advantages, update policy and critic.

`config` is the `PpoConfig` of the run. Read top to bottom: state, minibatches, iteration, optimisers.
Legend: B prompts of an iteration, T response slots.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.losses.ppo import ratio_variance
from gptjax.losses.rewards import update_kl_coefficient
from gptjax.sharding.mesh import place
from gptjax.stages.conventions import cut_ids
from gptjax.stages.experience import (
    count_totals,
    make_experience,
    make_policy_loss,
    make_score,
    make_take,
    make_value_loss,
)
from gptjax.stages.rollout import draw, reward_scores
from gptjax.stages.self_check import check_first_ratio, check_identities
from gptjax.stages.sharded import compile_step
from gptjax.training.optimizers import make_optimizer
from gptjax.training.step import TrainState, make_train_step


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PpoState:
    """Everything that a resumed run needs besides its configuration.

    Attributes:
        step: int32 scalar, iterations finished.
        policy, critic: train states.
        ema: averaged policy parameters.
        kl_coef: float32 scalar.
    """

    step: jax.Array
    policy: TrainState
    critic: TrainState
    ema: Any
    kl_coef: jax.Array


def minibatch_order(config, iteration: int) -> np.ndarray:
    """Rows of every minibatch of an iteration: `[epochs * minibatches, batch_size / minibatches]`."""
    rng = np.random.default_rng([config.seed, iteration])
    orders = [rng.permutation(config.batch_size) for _ in range(config.epochs)]
    return np.concatenate(orders).reshape(config.epochs * config.minibatches, -1).astype(np.int32)


def make_iteration(config, tokenizer, language, scalar, reference, reward, texts, mesh):
    """`iteration(state, prompts, key) -> (state, metrics)`: rollout, experience, all updates."""
    policy_optimizer, value_optimizer = make_optimizers(config, language, scalar)
    dtype = language.config.compute_dtype
    cuts, pad = cut_ids(config.conventions, tokenizer), tokenizer.pad_id
    end = None if cuts else tokenizer.im_end_id

    def request_keys(key, step):
        return jax.random.split(jax.random.fold_in(key, step), config.batch_size)

    def rollout_fn(params, prompts, key, step):
        keys = request_keys(key, step)
        return draw(language, params, prompts["tokens"], prompts["mask"], keys, config.sampling, end, pad)

    def average(ema, params):
        decay = config.ema_decay
        return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, ema, params)

    rollout_step, score = jax.jit(rollout_fn), make_score(config, language)
    experience, take = make_experience(config, score, scalar, cuts), make_take(config)
    average = jax.jit(average, donate_argnums=0)
    policy_step = compile_step(
        make_train_step(
            make_policy_loss(config, language), count_totals, policy_optimizer, accumulate=config.accumulate
        ),
        mesh,
    )
    value_step = compile_step(
        make_train_step(
            make_value_loss(config, scalar), count_totals, value_optimizer, accumulate=config.accumulate
        ),
        mesh,
    )

    def iteration(state: PpoState, prompts, key):
        number = int(state.step)
        rollout_key, policy_key, value_key = (jax.random.fold_in(key, purpose) for purpose in range(3))
        with jax.set_mesh(mesh):
            rollout = rollout_step(state.policy.params, prompts, rollout_key, number)
            made, metrics = experience(
                state.policy.params, state.critic.params, reference, reward, rollout, state.kl_coef
            )
            if number == 0:
                keys = jnp.stack([request_keys(rollout_key, i) for i in (0, 1)])
                scores = jax.jit(reward_scores, static_argnums=0)(scalar, reward, rollout)
                metrics |= check_identities(
                    lambda *given: score(*given)[0],
                    state.policy.params,
                    reference,
                    rollout,
                    scores,
                    keys,
                    dtype,
                )
        policy, critic, ema, parts = state.policy, state.critic, state.ema, []
        if config.kl_limit is not None and float(metrics["objective/kl"]) > config.kl_limit:
            state = dataclasses.replace(state, step=state.step + 1, ema=average(ema, policy.params))
            return state, metrics | {"val/beyond_limit": 1.0}
        for rows in minibatch_order(config, number):
            batch = {"experience": take(made, rows)}
            text = {"text": place(texts(int(policy.step)), mesh)} if config.ptx_coef else {}
            policy, policy_metrics = policy_step(policy, batch | text, policy_key)
            critic, value_metrics = value_step(critic, batch, value_key)
            ema = average(ema, policy.params)
            value_metrics = {"val/gradient_norm": value_metrics.pop("gradient_norm")} | value_metrics
            skipped = jnp.maximum(policy_metrics["skipped"], value_metrics["skipped"])
            parts.append(value_metrics | policy_metrics | {"skipped": skipped})
            if number == 0 and len(parts) == 1:
                metrics |= check_first_ratio(policy_metrics, dtype)
        updates = {name: jnp.stack([part[name] for part in parts]).mean() for name in parts[0]}
        updates["skipped"] = jnp.stack([part["skipped"] for part in parts]).max()
        updates["val/ratio_var"] = ratio_variance(updates["val/ratio"], updates.pop("val/ratio_spread"))
        kl_coef = state.kl_coef
        if config.kl_target is not None:
            kl_coef = update_kl_coefficient(
                kl_coef, metrics["objective/kl"], config.kl_target, config.kl_horizon, config.batch_size
            )
        return PpoState(state.step + 1, policy, critic, ema, kl_coef), metrics | updates

    return iteration


def make_optimizers(config, language, scalar):
    """The policy's and the critic's optimisers over all updates of the run."""
    updates = config.iterations * config.epochs * config.minibatches
    return (
        make_optimizer(config.optimizer, updates, language.axes),
        make_optimizer(config.value_optimizer, updates, scalar.axes),
    )
