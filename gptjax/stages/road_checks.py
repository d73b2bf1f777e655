"""What must hold of a road before its first stage begins, so that nothing of it fails an hour later."""

from collections.abc import Collection

from gptjax.config import ConfigError
from gptjax.data import chat, corpora
from gptjax.data.byte_level import IM_END, IM_START
from gptjax.data.files import is_path, source_files, unknown_source
from gptjax.data.preferences import read_preferences
from gptjax.data.quality import BadRows, DataError
from gptjax.models.functional import ModelDefinition
from gptjax.models.heads import LanguageModel
from gptjax.models.lora import LoraDefinition
from gptjax.stages.handover import too_long
from gptjax.stages.ppo_data import ppo_lengths
from gptjax.stages.tokenizer import read_tokenizer

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
                path = corpora.split_field(source)[0] if suffixes is text else source
                if path in bundled:
                    continue
                if not is_path(path):
                    raise DataError(f"{stage}: {unknown_source(path, bundled)}")
                source_files(path, suffixes)
    if "finetune" in stages and config.pretrain.tokenizer:
        check_frames(config.pretrain.tokenizer)
    read_rows(config, stages)


def check_frames(tokenizer: str) -> None:
    """Refuses a tokenizer without pieces that frame messages, of which fine-tuning makes dialogues.

    Raises:
        DataError: it lacks them, or is none.
    """
    if not read_tokenizer(tokenizer).chatml:
        raise DataError(
            f"pretrain.tokenizer = {tokenizer} has no {IM_START} and {IM_END}, which dialogues need: name "
            "another, or leave it out to have one trained"
        )


def read_rows(config, stages: Collection[str]) -> None:
    """Reads the user's dialogues and rankings once, so that bad rows are found before the first stage.

    Raises:
        DataError: too many rows are bad.
    """
    dialogues = {"finetune": config.finetune.dialogues, "ppo": [config.ppo.prompts, *config.ppo.dialogues]}
    sources = dict.fromkeys(source for stage in stages for source in dialogues.get(stage, ()))
    for source in filter(is_path, sources):
        chat.read_dialogues(source)
    if "reward" in stages and is_path(config.reward.source):
        read_preferences(config.reward.source, BadRows())
