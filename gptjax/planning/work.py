"""What each kind of stage compiles and holds in memory, from its configuration and its models' shapes alone.

One function a kind of stage, in the words of the stage itself: where the stage changes what it compiles, the
function here changes with it. Legend: B batch, L length, K completions of a prompt, G prompts, R packed rows.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp

from gptjax.config import ConfigError
from gptjax.models.classifier import Classifier, ClassifierConfig
from gptjax.models.encoder import EncoderConfig
from gptjax.models.encoder_decoder import EncoderDecoder
from gptjax.models.functional import ModelDefinition
from gptjax.models.glm import GLM
from gptjax.models.heads import LanguageModel, MaskedLanguageModel, ScalarModel
from gptjax.models.lora import LoraDefinition
from gptjax.planning.alignment import grouped_work, ppo_work
from gptjax.planning.programs import Work, abstract_mesh, parameters, rows, text_batch, update_program
from gptjax.planning.shapes import Shapes
from gptjax.stages.best_of_n import BestOfNConfig
from gptjax.stages.classify import TASK_TOKENS, ClassifyConfig, count_examples, make_classify_loss
from gptjax.stages.finetune import FinetuneConfig
from gptjax.stages.grouped import GroupedConfig
from gptjax.stages.infill import InfillConfig
from gptjax.stages.infill_chat import InfillChatConfig
from gptjax.stages.language_loss import PACKED, PLAIN, count_tokens, make_language_loss
from gptjax.stages.masked import MaskedConfig, count_predictions, make_masked_loss
from gptjax.stages.online import OnlineConfig
from gptjax.stages.ppo import PpoConfig
from gptjax.stages.preference import PreferenceConfig, make_preference_loss
from gptjax.stages.pretrain import PretrainConfig
from gptjax.stages.reward import RewardConfig, count_groups, make_reward_loss
from gptjax.stages.road import RoadConfig, stage_configs
from gptjax.stages.sharded import order_microbatches
from gptjax.stages.translate import TranslateConfig, make_translation_loss
from gptjax.training.batch_ramp import plan_batches
from gptjax.training.optimizers import make_optimizer

GUESSED_STEPS = 1000  # of a schedule whose length the data decides; no shape depends on it
DATA_DECIDES = "the data decides how many steps there are"


def stages_of(config, shapes: Shapes, name: str) -> dict[str, object]:
    """Stage name -> configuration of every stage that an experiment trains; empty if it trains nothing.

    Args:
        config: of the experiment.
        shapes: learns what the stages of a road leave to each other.
        name: of the run.
    """
    if isinstance(config, RoadConfig):
        folder = Path("runs") / name
        stages = {stage: own for stage, (_, own) in stage_configs(config, folder).items()}
        for stage, own in stages.items():
            shapes.known[str(folder / stage)] = shapes.left_by(own)
        return stages
    if isinstance(config, BestOfNConfig):
        return {"finetune": dataclasses.replace(config.finetune, base=config.policy)}
    if isinstance(config, OnlineConfig):
        base = config.reward.base or config.policy
        reward = dataclasses.replace(config.reward, base=base)
        folder = f"runs/{name}/reward"
        shapes.known[folder] = shapes.left_by(reward)
        return {"reward": reward, "ppo": dataclasses.replace(config.ppo, policy=config.policy, reward=folder)}
    return {_TRAINED[type(config)][0]: config} if type(config) in _TRAINED else {}


def work_of(config, shapes: Shapes, mesh=None) -> Work:
    """What a stage compiles and holds.

    Args:
        config: of a stage, from `stages_of`.
        shapes: of the models it starts from.
        mesh: with devices, to compile for them; None is one without, of the configuration's sizes.

    Raises:
        ConfigError: the kind of stage is unknown here, a base's shape is, or an axis does not divide.
    """
    if type(config) not in _TRAINED:
        raise ConfigError(f"a {type(config).__name__} trains nothing, so there is nothing to plan")
    return _TRAINED[type(config)][1](config, shapes, abstract_mesh(config.mesh) if mesh is None else mesh)


def _single(name, config, definition, loss, count, batch, mesh, *, rows, tokens, **changes) -> Work:
    """The work of a stage that has one model and one program."""
    steps = getattr(config, "steps", None)
    schedule = changes.pop("schedule", (steps or GUESSED_STEPS,))
    optimizer = make_optimizer(config.optimizer, schedule[0], definition.axes, *schedule[1:])
    model = changes.pop("model", definition.config)
    given = {"config": config, "rows": rows, "model": model}
    program = update_program("update", definition, optimizer, loss, count, batch, mesh, **given)
    facts = {
        "model": model,
        "held": {"state": program.arguments[0]},
        "parameters": {"model": definition.parameter_count},
        "total": None if steps is None else steps * tokens,
        "assumed": [] if steps else [DATA_DECIDES],
    }
    return Work(name, config.mesh, programs=[program], tokens=tokens, steps=steps, **facts | changes)


def _pretrain(config: PretrainConfig, shapes: Shapes, mesh) -> Work:
    definition = ModelDefinition(LanguageModel, shapes.own(config.model))
    plan = plan_batches(config.ramp, config.batch_size, config.length, config.steps)
    in_turn, flowing = order_microbatches(config.mesh, config.accumulate)
    loss = make_language_loss(definition, z_loss=config.z_loss, chunk=config.loss_chunk, microbatches=flowing)
    batch = text_batch(mesh, config.batch_size, config.length, PLAIN)
    sizes = {"rows": config.batch_size, "tokens": config.batch_size * config.length}
    more = {"schedule": (plan.updates, plan.clock), "total": plan.total * config.length}
    more |= {"chunk": _chunk(config, sizes["tokens"] // in_turn), "flowing": flowing}
    return _single("pretrain", config, definition, loss, count_tokens, batch, mesh, **sizes, **more)


def _chunk(config, tokens: int) -> int:
    """Tokens whose logits one device holds at once, of so many in a micro-batch on all devices."""
    return min(config.loss_chunk, tokens * config.mesh.tensor // config.mesh.size)


def _finetune(config: FinetuneConfig, shapes: Shapes, mesh) -> Work:
    base = shapes.base(config.base, "base", "language")
    model = dataclasses.replace(base, dropout=config.dropout)
    definition = ModelDefinition(LanguageModel, model)
    batch = text_batch(mesh, config.batch_size, config.length, PACKED)
    sizes = {"rows": config.batch_size, "tokens": config.batch_size * config.length}
    loss = make_language_loss(definition)
    if config.lora is None:
        return _single("finetune", config, definition, loss, count_tokens, batch, mesh, **sizes)
    adapters, frozen = LoraDefinition(definition, config.lora), parameters(definition, mesh)
    program = update_program(
        "update",
        adapters,
        make_optimizer(config.optimizer, config.steps, adapters.axes),
        loss,
        count_tokens,
        batch,
        mesh,
        config=config,
        rows=config.batch_size,
        model=model,
        adapted=(config.lora, frozen),
    )
    return Work(
        "finetune",
        config.mesh,
        model,
        held={"state": program.arguments[0], "base": frozen},
        programs=[program],
        parameters={"base": definition.parameter_count, "adapters": adapters.parameter_count},
        tokens=sizes["tokens"],
        steps=config.steps,
        total=config.steps * sizes["tokens"],
    )


def _rankings(config, mesh) -> tuple[dict, int, list[str]]:
    """(a packed batch of rankings, its rows, what was assumed): one row a completion at most."""
    G, K = config.batch_size, config.k_max
    R = G * K
    batch = {name: ((R, config.length), jnp.int32) for name in ("tokens", "segment_ids", "positions")}
    batch |= {"end_row": ((G, K), jnp.int32), "end_column": ((G, K), jnp.int32)}
    batch |= {"scores": ((G, K), jnp.float32), "valid": ((G, K), jnp.bool_)}
    assumed = [DATA_DECIDES, f"each of the {K} completions of a prompt fills a row of {config.length} tokens"]
    return batch, R, assumed


def _reward(config: RewardConfig, shapes: Shapes, mesh) -> Work:
    trunk = shapes.base(config.base, "base", "language", "scalar")
    model = dataclasses.replace(trunk, layers=config.layers or trunk.layers, dropout=config.dropout)
    definition = ModelDefinition(ScalarModel, model)
    batch, R, assumed = _rankings(config, mesh)
    loss = make_reward_loss(definition, config.margin_scale, config.loss, config.centring)
    more = {"rows": R, "tokens": R * config.length, "assumed": assumed}
    return _single("reward", config, definition, loss, count_groups, rows(mesh, **batch), mesh, **more)


def _preference(config: PreferenceConfig, shapes: Shapes, mesh) -> Work:
    base = shapes.base(config.base, "base", "language")
    definition = ModelDefinition(LanguageModel, dataclasses.replace(base, dropout=config.dropout))
    batch, R, assumed = _rankings(config, mesh)
    shape = config.batch_size, config.k_max
    batch |= {"starts": (shape, jnp.int32), "counts": (shape, jnp.int32), "reference": (shape, jnp.float32)}
    if config.loss == "kto":
        batch["reference_point"] = (shape[:1], jnp.float32)
        assumed = [
            *assumed,
            "the pass over swapped completions that gives KTO its reference point is not counted",
        ]
    loss = make_preference_loss(definition, config)
    frozen = parameters(definition, mesh)
    more = {"rows": R, "tokens": R * config.length, "assumed": assumed}
    found = _single("preference", config, definition, loss, count_groups, rows(mesh, **batch), mesh, **more)
    return dataclasses.replace(found, held=found.held | {"reference": frozen})


def _infill(config: InfillConfig, shapes: Shapes, mesh) -> Work:
    definition = ModelDefinition(GLM, shapes.own(shapes.left_by(config)[1]))
    chunk = _chunk(config, config.batch_size * config.length // config.accumulate)
    return _blanks("infill", config, definition, mesh, loss_chunk=config.loss_chunk, chunk=chunk)


def _infill_chat(config: InfillChatConfig, shapes: Shapes, mesh) -> Work:
    base = shapes.base(config.base, "base", "glm")
    definition = ModelDefinition(GLM, dataclasses.replace(base, dropout=config.dropout))
    return _blanks("infill_chat", config, definition, mesh)


def _blanks(name, config, definition, mesh, *, loss_chunk=1024, **more) -> Work:
    B, L = config.batch_size, config.length
    kinds = {n: ((B, L), jnp.float32 if n == "loss_mask" else jnp.int32) for n in PACKED}
    batch = rows(mesh, **kinds | {"positions": ((B, L, 2), jnp.int32)})
    loss = make_language_loss(definition, chunk=loss_chunk)
    return _single(name, config, definition, loss, count_tokens, batch, mesh, rows=B, tokens=B * L, **more)


def _masked(config: MaskedConfig, shapes: Shapes, mesh) -> Work:
    definition = ModelDefinition(MaskedLanguageModel, shapes.own(config.model))
    B, L, P = config.batch_size, config.length, config.masking.max_predictions
    declared = {name: ((B, L), jnp.int32) for name in ("tokens", "token_types", "segment_ids")}
    declared |= {name: ((B, P), jnp.int32) for name in ("places", "targets")}
    declared |= {"place_weights": ((B, P), jnp.float32)}
    declared |= {"labels": ((B,), jnp.int32), "row_weights": ((B,), jnp.float32)}
    loss = make_masked_loss(definition, config.next_sentence)
    more = {"rows": B, "tokens": B * L}
    return _single(
        "masked", config, definition, loss, count_predictions, rows(mesh, **declared), mesh, **more
    )


def _classify(config: ClassifyConfig, shapes: Shapes, mesh) -> Work:
    trunk = shapes.base(config.base, "base", "language", "masked", "encoder")
    new = 0 if isinstance(trunk, EncoderConfig) else TASK_TOKENS
    trunk = dataclasses.replace(trunk, vocab_size=trunk.vocab_size + new, dropout=config.dropout)
    choice = config.form == "choice"
    definition = ModelDefinition(Classifier, ClassifierConfig(trunk=trunk, classes=None if choice else 2))
    B, S, L = config.batch_size, 2 if config.form in ("similarity", "choice") else 1, config.length
    declared = {name: ((B, S, L), jnp.int32) for name in ("tokens", "token_types")}
    declared |= {"ends": ((B, S), jnp.int32), "labels": ((B,), jnp.int32), "weights": ((B,), jnp.float32)}
    loss = make_classify_loss(definition, config.lm_weight)
    more = {
        "rows": B,
        "tokens": B * S * L,
        "model": trunk,
        "assumed": ["an example has two classes or answers"],
    }
    return _single("classify", config, definition, loss, count_examples, rows(mesh, **declared), mesh, **more)


def _translate(config: TranslateConfig, shapes: Shapes, mesh) -> Work:
    definition = ModelDefinition(EncoderDecoder, shapes.own(config.model))
    L = config.lengths[-1]
    B = config.batch_tokens // L
    kinds = {"sources": jnp.int32, "source_mask": jnp.int32, "tokens": jnp.int32, "targets": jnp.int32}
    kinds |= {"loss_mask": jnp.float32}
    batch = rows(mesh, **{name: ((B, L), kind) for name, kind in kinds.items()})
    loss = make_translation_loss(definition, config.label_smoothing, config.smooth_over)
    more = {"rows": B, "tokens": B * L, "assumed": [f"every batch has rows of {L} tokens, the longest"]}
    return _single("translate", config, definition, loss, count_tokens, batch, mesh, **more)


_TRAINED: dict[type, tuple[str, Callable[..., Work]]] = {
    PretrainConfig: ("pretrain", _pretrain),
    FinetuneConfig: ("finetune", _finetune),
    RewardConfig: ("reward", _reward),
    PreferenceConfig: ("preference", _preference),
    PpoConfig: ("ppo", ppo_work),
    GroupedConfig: ("grouped", grouped_work),
    InfillConfig: ("infill", _infill),
    InfillChatConfig: ("infill_chat", _infill_chat),
    MaskedConfig: ("masked", _masked),
    ClassifyConfig: ("classify", _classify),
    TranslateConfig: ("translate", _translate),
}
