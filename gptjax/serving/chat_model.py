"""A model that answers messages: its form of dialogue around the text engine."""

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from gptjax.config import ConfigError
from gptjax.data.chat import Messages
from gptjax.data.chat_templates import ChatForm, check_can_chat, prompt_ids, stop_ids
from gptjax.environment import return_freed_memory
from gptjax.generation.engine import TextEngine, fitting_sampling
from gptjax.generation.sampling import SamplingConfig
from gptjax.models.quantization import QuantizationConfig, quantize
from gptjax.serving.round_model import RoundModel
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages.handover import load_model, model_kind


class ChatModel:
    """Replies to dialogues.

    Attributes:
        context_length: most tokens of dialogue and reply together.
        sampling: setting -> the model's own default.
    """

    def __init__(self, engine: TextEngine, form: ChatForm):
        """Args:
        engine: the model.
        form: how it is talked to.
        """
        self._engine, self._template = engine, form.template
        self._system = [{"role": "system", "content": form.system_message}] if form.system_message else []
        self.context_length, self.sampling = engine.context_length, form.sampling

    def stream(self, messages: Messages, *, seed: int, **sampling: Any) -> Generator[str, None, None]:
        """The reply in pieces, as they are drawn; `sampling` names what `SamplingConfig` has.

        Raises:
            ConfigError: the messages leave no room for a reply.
        """
        prompt = self._prompt(messages)
        sampling = fitting_sampling(len(prompt), self.context_length, SamplingConfig(**sampling))
        yield from self._engine.stream(prompt, sampling, seed)

    def replies(self, dialogues: list[Messages], sampling: SamplingConfig, seeds: list[int]) -> list[str]:
        """The replies to many dialogues, one seed each."""
        prompts = [self._prompt(messages) for messages in dialogues]
        return self._engine.complete(prompts, sampling, seeds)

    def prompt_length(self, messages: Messages) -> int:
        """Tokens that the messages take as a prompt."""
        return len(self._prompt(messages))

    def _prompt(self, messages: Messages) -> list[int]:
        has_system = bool(messages) and messages[0]["role"] == "system"
        messages = messages if has_system else self._system + messages
        return prompt_ids(messages, self._engine.tokenizer, self._template)


# Where a run's chat model lies: a single stage's own folder, or the last aligned stage of a road.
MODEL_FOLDERS = (".", "ppo", "finetune")


def load_chat_model(
    run: str | Path, quantization: QuantizationConfig | None = None
) -> ChatModel | RoundModel:
    """The newest chat model of a run folder, its linear maps quantised if so wished.

    Raises:
        ConfigError: the run has none yet.
        DataError: its tokenizer cannot frame messages.
    """
    for name in MODEL_FOLDERS:
        folder = Path(run) / name
        if model_kind(folder) == "glm":
            return RoundModel(load_model(folder, make_mesh(MeshConfig())), quantization)
        if model_kind(folder) == "language":
            model = load_model(folder, make_mesh(MeshConfig()))
            check_can_chat(model.tokenizer, model.chat.template)
            stop = [(id,) for id in stop_ids(model.tokenizer, model.chat)]
            if quantization is not None:
                small = jax.block_until_ready(quantize(model.params, quantization))
                model = replace(model, params=small)
                return_freed_memory()
            engine = TextEngine(model.definition, model.params, model.tokenizer, stop)
            return ChatModel(engine, model.chat)
    if kind := model_kind(run):
        raise ConfigError(
            f"{run} holds a {kind} model, which does not chat: name the folder of a fine-tuned model"
        )
    raise ConfigError(f"{run} holds no finished chat model yet: let its fine-tuning stage run to the end")
