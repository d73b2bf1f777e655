"""One iteration of PPO: draw replies, score them, estimate advantages, update policy and critic.

`config` is the `PpoConfig` of the run. Read top to bottom: state, minibatches, iteration, optimisers.
Legend: B prompts of an iteration, T response slots.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.losses.ppo import ratio_variance
from gptjax.losses.rewards import update_kl_coefficient
from gptjax.models.lora import LoraDefinition
from gptjax.sharding.mesh import place
from gptjax.sharding.rules import parameter_shardings
from gptjax.stages.adapters import AdaptedParams, make_adapted_step, whole
from gptjax.stages.conventions import cut_ids
from gptjax.stages.experience import (
    count_totals,
    make_experience,
    make_policy_loss,
    make_score,
    make_take,
    make_value_loss,
)
from gptjax.stages.judges import by_name
from gptjax.stages.rollout import draw
from gptjax.stages.self_check import SelfCheck
from gptjax.stages.sharded import bounded, compile_step
from gptjax.training.digest import digest
from gptjax.training.optimizers import make_optimizer
from gptjax.training.step import TrainState, make_train_step

# What an iteration logs the digests of, in the order in which it is made.
DIGESTS = tuple(
    f"digest/{made}" for made in ("rollout", "experience", "policy_gradient", "critic_gradient", "parameters")
)
GRADIENT = "digest/gradient"  # of one update


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


def trained_part(config, language):
    """What of the policy is trained: all of it, or its adapters."""
    return language if config.lora is None else LoraDefinition(language, config.lora)


def make_versions(config, language, reference, mesh):
    """(`policy(trained) -> parameters`, those of the reference) for `whole`, around one copy of the base.

    With adapters the policy is the reference's parameters with them, and the reference is the same with
    adapters that change nothing: the same program scores both.
    """
    if config.lora is None:
        return lambda params: params, reference
    adapters = trained_part(config, language)
    shardings = parameter_shardings(mesh, adapters.abstract, adapters.axes)
    off = jax.tree.map(lambda a, s: jnp.zeros(a.shape, a.dtype, device=s), adapters.abstract, shardings)

    def adapted(params):
        return AdaptedParams(reference, params, config.lora)

    return adapted, adapted(off)


def make_rollout(config, language, tokenizer, request_keys):
    """Jitted `rollout(params, prompts, key, number)`: a reply to each prompt."""
    pad = tokenizer.pad_id
    end = None if config.conventions.cut_at else tokenizer.im_end_id

    def rollout(params, prompts, key, number):
        asked = prompts["tokens"], prompts["mask"], request_keys(key, number)
        return draw(language, whole(params), *asked, config.sampling, end, pad)

    return jax.jit(rollout)


def make_updates(config, language, scalar, reference, mesh):
    """The compiled train steps of policy and critic; both log the digests of their gradients."""
    policy_optimizer, value_optimizer = make_optimizers(config, trained_part(config, language), scalar)
    choices = {"accumulate": config.accumulate, "watch": lambda gradient: {GRADIENT: digest(gradient)}}
    policy_loss, value_loss = make_policy_loss(config, language), make_value_loss(config, scalar)
    value_step = compile_step(make_train_step(value_loss, count_totals, value_optimizer, **choices), mesh)
    if config.lora is None:
        step = make_train_step(policy_loss, count_totals, policy_optimizer, **choices)
        return compile_step(step, mesh), value_step
    step = make_adapted_step(policy_loss, count_totals, config.lora, policy_optimizer, **choices)
    return compile_step(step, mesh, reference), value_step


def make_iteration(config, tokenizer, language, scalar, reference, reward, texts, mesh):
    """`iteration(state, prompts, key) -> (state, metrics)`: rollout, experience, all updates.

    `reference` are the reference's parameters; with `config.lora` they are the policy's base as well.
    """

    def request_keys(key, number):
        return jax.random.split(jax.random.fold_in(key, number), config.batch_size)

    def average(ema, params):
        decay = config.ema_decay
        return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, ema, params)

    rollout_step = make_rollout(config, language, tokenizer, request_keys)
    score, take = make_score(config, language), make_take(config)
    experience = make_experience(config, score, scalar, cut_ids(config.conventions, tokenizer))
    check = SelfCheck(config, language, score, scalar)
    policy_step, value_step = make_updates(config, language, scalar, reference, mesh)
    policy_params, reference = make_versions(config, language, reference, mesh)
    average = jax.jit(average, donate_argnums=0)

    def iteration(state: PpoState, prompts, key):
        number, drawing = int(state.step), policy_params(state.policy.params)
        rollout_key, policy_key, value_key = (jax.random.fold_in(key, purpose) for purpose in range(3))
        with jax.set_mesh(mesh):
            rollout = rollout_step(drawing, prompts, rollout_key, number)
            made, metrics = experience(
                drawing, state.critic.params, reference, reward, rollout, state.kl_coef
            )
            floats = {n: getattr(made, n) for n in ("rewards", "old_values", "advantages", "returns")}
            keys = partial(request_keys, rollout_key)
            judges = {"critic": state.critic.params} | by_name(reward)
            metrics |= check.of_rollout(drawing, reference, rollout, floats, keys, number, judges)
            metrics |= {"digest/rollout": digest(rollout), "digest/experience": digest(made)}
        policy, critic, ema, parts, gradients = state.policy, state.critic, state.ema, [], []
        if config.kl_limit is not None:
            beyond = float(metrics["objective/kl"]) > config.kl_limit
            metrics["val/beyond_limit"] = float(beyond)
            if beyond:
                state = dataclasses.replace(state, step=state.step + 1, ema=average(ema, policy.params))
                return state, metrics
        for rows in minibatch_order(config, number):
            batch = {"experience": take(made, rows)}
            text = {"text": place(texts(int(policy.step)), mesh)} if config.ptx_coef else {}
            policy, policy_metrics = policy_step(policy, batch | text, policy_key)
            critic, value_metrics = value_step(critic, batch, value_key)
            ema = average(ema, policy.params)
            value_metrics = {"val/gradient_norm": value_metrics.pop("gradient_norm")} | value_metrics
            gradients.append((policy_metrics.pop(GRADIENT), value_metrics.pop(GRADIENT)))
            skipped = jnp.maximum(policy_metrics["skipped"], value_metrics["skipped"])
            parts.append(value_metrics | policy_metrics | {"skipped": skipped})
            bounded(parts)
            if len(parts) == 1:
                metrics |= check.of_update(policy_metrics, number)
        updates = {name: jnp.stack([part[name] for part in parts]).mean() for name in parts[0]}
        updates["skipped"] = jnp.stack([part["skipped"] for part in parts]).max()
        updates["val/ratio_var"] = ratio_variance(updates["val/ratio"], updates.pop("val/ratio_spread"))
        of_policy, of_critic = zip(*gradients, strict=True)
        metrics |= {"digest/policy_gradient": digest(of_policy), "digest/critic_gradient": digest(of_critic)}
        metrics["digest/parameters"] = digest((policy.params, critic.params))
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
