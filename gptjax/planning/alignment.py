"""What PPO, RLOO and GRPO compile and hold: a rollout, what scores it, and the updates.

Legend: B replies of a step, P prompt slots, T response slots.
"""

import dataclasses
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
    trained, B = trained_part(config, language), config.batch_size
    policy_optimizer, value_optimizer = make_optimizers(config, trained, scalar)
    reference, reward = parameters(language, mesh), parameters(scalar, mesh)
    adapted = None if config.lora is None else (config.lora, reference)

    count = B // config.minibatches
    batch = {"experience": _experience(config, count, mesh)}
    text = {"text": text_batch(mesh, config.ptx_rows, config.ptx_length, PACKED)} if config.ptx_coef else {}
    common = {"config": config, "calls": config.epochs * config.minibatches, "rows": count}
    policy_update = update_program(
        "policy update",
        trained,
        policy_optimizer,
        make_policy_loss(config, language),
        count_totals,
        batch | text,
        mesh,
        model=language.config,
        adapted=adapted,
        **common,
    )
    value_update = update_program(
        "critic update",
        scalar,
        value_optimizer,
        make_value_loss(config, scalar),
        count_totals,
        batch,
        mesh,
        **common,
    )
    policy, critic = policy_update.arguments[0], value_update.arguments[0]
    drawing, still = policy.params, reference
    if config.lora is not None:
        drawing = still = AdaptedParams(reference, policy.params, config.lora)

    def request_keys(key, number):
        return jax.random.split(jax.random.fold_in(key, number), B)

    rollout = make_rollout(config, language, TOKENIZER, request_keys)
    experience = make_experience(
        config, make_score(config, language), scalar, (0,) if config.conventions.cut_at else ()
    )
    T = config.sampling.max_new_tokens
    prompts = rows(
        mesh, tokens=((B, config.prompt_length), jnp.int32), mask=((B, config.prompt_length), jnp.bool_)
    )
    replies = _rollout(B, config.prompt_length, T, mesh)
    judges = {"reward": reward}
    if config.tracking is not None and config.tracking.gold:
        gold = shapes.base(config.tracking.gold, "tracking.gold", "scalar")
        judges["gold"] = parameters(ModelDefinition(ScalarModel, gold), mesh)
    return Work(
        "ppo",
        config.mesh,
        language.config,
        held={"policy": policy, "critic": critic, "ema": policy.params, "reference": reference, **judges},
        programs=[
            Program(
                "rollout",
                rollout,
                (drawing, prompts, random_key(), _number(mesh, jnp.int32)),
                trips=T,
            ),
            Program(
                "experience",
                experience,
                (drawing, critic.params, still, reward, replies, _number(mesh, jnp.float32)),
                resident=(0, 1, 2, 3),
            ),
            policy_update,
            value_update,
        ],
        parameters={"policy": language.parameter_count, "critic and reward": scalar.parameter_count},
        tokens=B * T,
        steps=config.iterations,
        total=config.iterations * B * T,
        assumed=["every reply has its full length"],
        cache=(B, config.prompt_length + T),
    )


def grouped_work(config: GroupedConfig, shapes: Shapes, mesh) -> Work:
    """RLOO's or GRPO's rollout, scores and update; policy, reference and reward model in memory."""
    base = shapes.base(config.policy, "policy", "language")
    language = ModelDefinition(LanguageModel, dataclasses.replace(base, dropout=0.0))
    B, P, T = config.batch_size, config.prompt_length, config.sampling.max_new_tokens
    reference, count = parameters(language, mesh), config.batch_size // config.minibatches
    token, reply = ((count, T), jnp.float32), ((count,), jnp.float32)
    batch = {"rollout": _rollout(count, P, T, mesh)}
    batch |= rows(mesh, old_log_probs=token, weights=token, advantages=reply)
    updates = config.iterations * config.epochs * config.minibatches
    update = update_program(
        "policy update",
        language,
        make_optimizer(config.optimizer, updates, language.axes),
        make_grouped_loss(config, language),
        count_replies,
        batch,
        mesh,
        config=config,
        rows=count,
        calls=config.epochs * config.minibatches,
    )
    policy, replies = update.arguments[0], _rollout(B, P, T, mesh)

    def rollout(params, prompts, key, number):
        tokens, mask = (jnp.repeat(prompts[n], config.group_size, axis=0) for n in ("tokens", "mask"))
        keys = jax.random.split(jax.random.fold_in(key, number), B)
        ends = TOKENIZER.im_end_id, TOKENIZER.pad_id
        return draw(language, params, tokens, mask, keys, config.sampling, *ends)

    G = B // config.group_size
    prompts = rows(mesh, tokens=((G, P), jnp.int32), mask=((G, P), jnp.bool_))
    held = {"policy": policy, "reference": reference}
    score = make_score(config, language)
    programs = [
        Program(
            "rollout",
            rollout,
            (policy.params, prompts, random_key(), _number(mesh, jnp.int32)),
            trips=T,
        ),
        Program("score", score, (policy.params, replies), calls=2),
        update,
    ]
    counts = {"policy": language.parameter_count}
    if config.reward != "answers":
        scalar = ModelDefinition(ScalarModel, shapes.base(config.reward, "reward", "scalar"))
        held["reward"], counts["reward"] = parameters(scalar, mesh), scalar.parameter_count

        def judge(params, rollout):
            return reward_scores(scalar, params, rollout)

        programs.append(Program("reward", judge, (held["reward"], replies)))
    return Work(
        "grouped",
        config.mesh,
        language.config,
        held=held,
        programs=programs,
        parameters=counts,
        tokens=B * T,
        steps=config.iterations,
        total=config.iterations * B * T,
        assumed=["every reply has its full length"],
        cache=(B, P + T),
    )


def _rollout(B: int, P: int, T: int, mesh) -> Rollout:
    kinds = ((B, P), jnp.int32), ((B, P), jnp.bool_), ((B, T), jnp.int32)
    kinds += (((B, T), jnp.float32), ((B, T), jnp.float32), ((B,), jnp.bool_))
    return by_rows(Rollout(*(jax.ShapeDtypeStruct(shape, kind) for shape, kind in kinds)), mesh)


def _experience(config: PpoConfig, count: int, mesh) -> Experience:
    T = config.sampling.max_new_tokens
    real = by_rows(jax.ShapeDtypeStruct((count, T), jnp.float32), mesh)
    return Experience(_rollout(count, config.prompt_length, T, mesh), *6 * (real,))


def _number(mesh, kind) -> jax.ShapeDtypeStruct:
    number = jax.ShapeDtypeStruct((), kind)
    return laid_out(number, replicated(mesh))
