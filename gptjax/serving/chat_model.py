"""A fine-tuned model that answers messages: ChatML around the text engine."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

from gptjax.config import ConfigError
from gptjax.data.chat import Messages, render_prompt
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
    """

    def __init__(self, engine: TextEngine, system_message: str = ""):
        """Args:
        engine: the model.
        system_message: put before dialogues without one; "" for nothing.
        """
        self._engine = engine
        self._system = [{"role": "system", "content": system_message}] if system_message else []
        self.context_length = engine.context_length

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
        return render_prompt(messages if has_system else self._system + messages, self._engine.tokenizer)


# Where a run's chat model lies: a single stage's own folder, or the last aligned stage of a road.
MODEL_FOLDERS = (".", "ppo", "finetune")


def load_chat_model(
    run: str | Path, quantization: QuantizationConfig | None = None
) -> ChatModel | RoundModel:
    """The newest chat model of a run folder, its linear maps quantised if so wished.

    Raises:
        ConfigError: the run has none yet.
    """
    for name in MODEL_FOLDERS:
        folder = Path(run) / name
        if model_kind(folder) == "glm":
            return RoundModel(load_model(folder, make_mesh(MeshConfig())), quantization)
        if model_kind(folder) == "language":
            model = load_model(folder, make_mesh(MeshConfig()))
            stop = ((model.tokenizer.im_end_id,), (model.tokenizer.end_of_text_id,))
            params = model.params if quantization is None else quantize(model.params, quantization)
            engine = TextEngine(model.definition, params, model.tokenizer, stop)
            return ChatModel(engine, model.system_message)
    raise ConfigError(f"{run} holds no finished chat model yet: let its fine-tuning stage run to the end")
