"""What PPO, RLOO and GRPO compile and hold: a rollout, what scores it, and the updates.

Legend: B replies of a step, P prompt slots, T response slots.
"""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp

from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel, ScalarModel
from gptjax.planning.programs import (
    Program,
    Work,
    by_rows,
    laid_out,
    parameters,
    random_key,
    rows,
    text_batch,
    update_program,
)
from gptjax.planning.shapes import Shapes
from gptjax.sharding.mesh import replicated
from gptjax.stages.adapters import AdaptedParams
from gptjax.stages.experience import (
    Experience,
    count_totals,
    make_experience,
    make_policy_loss,
    make_score,
    make_value_loss,
)
from gptjax.stages.grouped import GroupedConfig, make_grouped_loss
from gptjax.stages.grouped import count_totals as count_replies
from gptjax.stages.language_loss import PACKED
from gptjax.stages.ppo import PpoConfig
from gptjax.stages.ppo_iteration import make_optimizers, make_rollout, trained_part
from gptjax.stages.rollout import Rollout, draw, reward_scores
from gptjax.training.optimizers import make_optimizer

# Which ids end and pad a reply changes no shape.
TOKENIZER = SimpleNamespace(pad_id=0, im_end_id=1)


def ppo_work(config: PpoConfig, shapes: Shapes, mesh) -> Work:
    """PPO's rollout, experience and updates; policy, reference, critic and reward model in memory."""
    base = shapes.base(config.policy, "policy", "language")
    language = ModelDefinition(LanguageModel, dataclasses.replace(base, dropout=0.0))
    scalar = ModelDefinition(ScalarModel, shapes.base(config.reward, "reward", "scalar"))
    reference, judges = parameters(language, mesh), {"reward": parameters(scalar, mesh)}
    judges |= {f"reward_{number}": judges["reward"] for number, _ in enumerate(config.ensemble, 2)}
    rewards = tuple(judges.values()) if config.ensemble else judges["reward"]
    if config.tracking is not None and config.tracking.gold:
        gold = shapes.base(config.tracking.gold, "tracking.gold", "scalar")
        judges["gold"] = parameters(ModelDefinition(ScalarModel, gold), mesh)
    updates = _ppo_updates(config, language, scalar, reference, mesh)
    policy, critic = (update.arguments[0] for update in updates)
    drawing, still = policy.params, reference
    if config.lora is not None:
        drawing = still = AdaptedParams(reference, policy.params, config.lora)

    def request_keys(key, number):
        return jax.random.split(jax.random.fold_in(key, number), config.batch_size)

    cuts = (0,) if config.conventions.cut_at else ()
    experience = make_experience(config, make_score(config, language), scalar, cuts)
    replies = _rollout(config.batch_size, config.prompt_length, config.sampling.max_new_tokens, mesh)
    scored = drawing, critic.params, still, rewards, replies, _number(mesh, jnp.float32)
    programs = [
        _drawing(config, make_rollout(config, language, TOKENIZER, request_keys), drawing, mesh),
        Program("experience", experience, scored, resident=(0, 1, 2, 3)),
        *updates,
    ]
    held = {"policy": policy, "critic": critic, "ema": policy.params, "reference": reference, **judges}
    counts = {"policy": language.parameter_count, "critic and reward": scalar.parameter_count}
    return _work("ppo", config, language, held, programs, counts)


def _ppo_updates(config: PpoConfig, language, scalar, reference, mesh) -> list[Program]:
    """The updates of policy and critic, each on a minibatch."""
    trained, count = trained_part(config, language), config.batch_size // config.minibatches
    policy_optimizer, value_optimizer = make_optimizers(config, trained, scalar)
    policy_loss, value_loss = make_policy_loss(config, language), make_value_loss(config, scalar)
    batch = {"experience": _experience(config, count, mesh)}
    text = {"text": text_batch(mesh, config.ptx_rows, config.ptx_length, PACKED)} if config.ptx_coef else {}
    common = {"config": config, "calls": config.epochs * config.minibatches, "rows": count}
    adapted = {} if config.lora is None else {"adapted": (config.lora, reference)}
    policy = trained, policy_optimizer, policy_loss, count_totals, batch | text, mesh
    critic = scalar, value_optimizer, value_loss, count_totals, batch, mesh
    return [
        update_program("policy update", *policy, model=language.config, **common, **adapted),
        update_program("critic update", *critic, **common),
    ]


def grouped_work(config: GroupedConfig, shapes: Shapes, mesh) -> Work:
    """RLOO's or GRPO's rollout, scores and update; policy, reference and reward model in memory."""
    base = shapes.base(config.policy, "policy", "language")
    language = ModelDefinition(LanguageModel, dataclasses.replace(base, dropout=0.0))
    update = _grouped_update(config, language, mesh)
    policy, B = update.arguments[0], config.batch_size
    replies = _rollout(B, config.prompt_length, config.sampling.max_new_tokens, mesh)

    def rollout(params, prompts, key, number):
        tokens, mask = (jnp.repeat(prompts[n], config.group_size, axis=0) for n in ("tokens", "mask"))
        keys = jax.random.split(jax.random.fold_in(key, number), B)
        ends = TOKENIZER.im_end_id, TOKENIZER.pad_id
        return draw(language, params, tokens, mask, keys, config.sampling, *ends)

    programs = [
        _drawing(config, rollout, policy.params, mesh, B // config.group_size),
        Program("score", make_score(config, language), (policy.params, replies), calls=2),
        update,
    ]
    held = {"policy": policy, "reference": parameters(language, mesh)}
    counts = {"policy": language.parameter_count}
    if config.reward != "answers":
        scalar = ModelDefinition(ScalarModel, shapes.base(config.reward, "reward", "scalar"))
        held["reward"], counts["reward"] = parameters(scalar, mesh), scalar.parameter_count
        programs.append(Program("reward", partial(reward_scores, scalar), (held["reward"], replies)))
    return _work("grouped", config, language, held, programs, counts)


def _grouped_update(config: GroupedConfig, language, mesh) -> Program:
    """The update of the policy on a minibatch."""
    T, count = config.sampling.max_new_tokens, config.batch_size // config.minibatches
    calls = config.epochs * config.minibatches
    optimizer = make_optimizer(config.optimizer, config.iterations * calls, language.axes)
    token, reply = ((count, T), jnp.float32), ((count,), jnp.float32)
    batch = {"rollout": _rollout(count, config.prompt_length, T, mesh)}
    batch |= rows(mesh, old_log_probs=token, weights=token, advantages=reply)
    loss, sizes = make_grouped_loss(config, language), {"rows": count, "calls": calls}
    return update_program(
        "policy update", language, optimizer, loss, count_replies, batch, mesh, config=config, **sizes
    )


def _drawing(config, rollout, params, mesh, prompts: int | None = None) -> Program:
    """The program that draws the replies of a step to its prompts, one each where their number is None."""
    shape = prompts or config.batch_size, config.prompt_length
    asked = rows(mesh, tokens=(shape, jnp.int32), mask=(shape, jnp.bool_))
    arguments = params, asked, random_key(), _number(mesh, jnp.int32)
    return Program("rollout", rollout, arguments, trips=config.sampling.max_new_tokens)


def _work(name: str, config, language, held, programs, counts) -> Work:
    B, T = config.batch_size, config.sampling.max_new_tokens
    return Work(
        name,
        config.mesh,
        language.config,
        held=held,
        programs=programs,
        parameters=counts,
        tokens=B * T,
        steps=config.iterations,
        total=config.iterations * B * T,
        assumed=["every reply has its full length"],
        cache=(B, config.prompt_length + T),
    )


def _rollout(B: int, P: int, T: int, mesh) -> Rollout:
    kinds = ((B, P), jnp.int32), ((B, P), jnp.bool_), ((B, T), jnp.int32)
    kinds += (((B, T), jnp.float32), ((B, T), jnp.float32), ((B,), jnp.bool_))
    return by_rows(Rollout(*(jax.ShapeDtypeStruct(shape, kind) for shape, kind in kinds)), mesh)


def _experience(config: PpoConfig, count: int, mesh) -> Experience:
    T = config.sampling.max_new_tokens
    real = by_rows(jax.ShapeDtypeStruct((count, T), jnp.float32), mesh)
    made = Experience(_rollout(count, config.prompt_length, T, mesh), *6 * (real,))
    if config.conventions.kl_in == "reward":
        return made
    price = by_rows(jax.ShapeDtypeStruct((count,), jnp.float32), mesh)
    return dataclasses.replace(made, ref_log_probs=real, kl_coef=price)


def _number(mesh, kind) -> jax.ShapeDtypeStruct:
    number = jax.ShapeDtypeStruct((), kind)
    return laid_out(number, replicated(mesh))
