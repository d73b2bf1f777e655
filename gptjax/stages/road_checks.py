"""What must hold of a road before its first stage begins, so that nothing of it fails an hour later."""

from collections.abc import Collection

from gptjax.config import ConfigError
from gptjax.data import chat, corpora
from gptjax.data.files import is_path, source_files, unknown_source
from gptjax.data.quality import DataError
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.models.lora import LoraDefinition
from gptjax.stages.handover import too_long
from gptjax.stages.ppo_data import ppo_lengths

STAGES = ("pretrain", "finetune", "reward", "ppo")
HANDED_OVER = ("base", "policy", "reward")


def check_settings(config) -> None:
    """Refuses what the stages of a `RoadConfig` cannot do together.

    Raises:
        ValueError: naming the key: the road would overwrite it, it is longer than the model's context, or
            it names what the model lacks.
    """
    for name in STAGES:
        stage = getattr(config, name)
        if stage.seed:
            raise ValueError(
                f"{name}.seed = {stage.seed} has no effect in a road, where every stage takes the "
                "road's: set seed (--seed)"
            )
        for key in HANDED_OVER:
            if getattr(stage, key, ""):
                raise ValueError(
                    f"{name}.{key} = '{getattr(stage, key)}' has no effect in a road, where every stage "
                    "takes the model of the one before it: leave it out, or run the stage by itself"
                )
    context = config.pretrain.model.context_length
    lengths = {"finetune.length": config.finetune.length, "reward.length": config.reward.length}
    lengths |= {f"ppo.{name}": length for name, length in ppo_lengths(config.ppo).items()}
    sentence = too_long(lengths, context)
    if sentence:
        raise ValueError(sentence)
    for name in ("finetune", "ppo"):
        lora = getattr(config, name).lora
        if lora is None:
            continue
        try:
            LoraDefinition(ModelDefinition(LanguageModel, config.pretrain.model), lora)
        except ConfigError as error:
            raise ValueError(f"{name}.{error}") from error
    new = config.chat_sampling.max_new_tokens
    if new >= context:
        raise ValueError(
            f"chat_sampling.max_new_tokens = {new} leaves no room for a question in a context of {context} "
            "tokens: lower it"
        )


def check_sources(config, stages: Collection[str] = STAGES) -> None:
    """Looks for every source that these stages of a `RoadConfig` name.

    Raises:
        DataError: a source is neither bundled nor a file or folder of the right kind.
    """
    text, rows = corpora.SUFFIXES, (".jsonl",)
    dialogues = (*chat.BUNDLED, "ratings")
    named = {
        "pretrain": [(config.pretrain.corpora, corpora.BUNDLED, text)],
        "finetune": [
            (config.finetune.dialogues, dialogues, rows),
            (config.finetune.text, corpora.BUNDLED, text),
        ],
        "reward": [([config.reward.source], ("ratings",), rows)],
        "ppo": [
            ([config.ppo.prompts, *config.ppo.dialogues], dialogues, rows),
            (config.ppo.corpora, corpora.BUNDLED, text),
        ],
    }
    named["ppo_without_ptx"] = named["ppo"]
    for stage in stages:
        for sources, bundled, suffixes in named[stage]:
            for source in sources:
                if source in bundled:
                    continue
                if not is_path(source):
                    raise DataError(f"{stage}: {unknown_source(source, bundled)}")
                source_files(source, suffixes)
