"""Streaming chat in the terminal."""

import dataclasses
import json
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Protocol, TextIO

from gptjax.config import ConfigError, nearest
from gptjax.errors import UserError

HELP = """/help             this text
/new              start a new dialogue
/retry            answer the last question again
/undo             take back the last question and its answer
/set              show the settings
/set KEY VALUE    change one: temperature top_k top_p max_new_tokens seed system
/save [FILE]      append the dialogue to FILE (default chat.jsonl) as a line of training data
/quit             leave; so does Ctrl-D. Ctrl-C stops a reply."""

_COMMANDS = ("/help", "/new", "/retry", "/undo", "/set", "/save", "/quit")
_LEAST = {"temperature": 0.0, "top_k": 0, "top_p": 0.0, "max_new_tokens": 1, "seed": 0}
# JAX makes keys of 32 bits of a seed.
_SEEDS = 2**32


class Engine(Protocol):
    """What the chat needs of a model: a stream of text pieces, the length of a prompt and of the context."""

    context_length: int

    def stream(self, messages: list[dict], **sampling: Any) -> Generator[str, None, None]:
        """Yields the reply in pieces; `sampling` is temperature, top_k, top_p, max_new_tokens and seed."""

    def prompt_length(self, messages: list[dict]) -> int:
        """Tokens that the messages take as a prompt."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How replies are sampled.

    Attributes:
      temperature: 0 takes the likeliest token.
      top_k: sample among the k likeliest tokens; 0 for all.
      top_p: sample among the likeliest tokens that together hold this probability.
      max_new_tokens: the longest reply.
      seed: of the first reply, below 2**32; each further reply adds one.
      system: a system message, put before the dialogue; empty for none.
    """

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 0.95
    max_new_tokens: int = 128
    seed: int = 0
    system: str = ""

    def set(self, key: str, text: str) -> "Settings":
        """The settings with one of them read from text.

        Raises:
          ConfigError: no such key, or a value out of its range.
        """
        fields = {field.name: field.type for field in dataclasses.fields(self)}
        name = key.replace("-", "_")
        if name not in fields:
            raise ConfigError(f"unknown setting '{key}': the settings are {', '.join(fields)}")
        try:
            value = fields[name](text)
        except ValueError:
            kind = "an integer" if fields[name] is int else "a number"
            raise ConfigError(f"{name} must be {kind}, but '{text}' was given") from None
        least = _LEAST.get(name)
        if least is not None and not value >= least:
            raise ConfigError(f"{name} must be at least {least}, but {text} was given")
        if name == "top_p" and not 0 < value <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, but {text} was given")
        if name == "seed" and value >= _SEEDS:
            raise ConfigError(f"seed must be below 2**32 = {_SEEDS}, but {text} was given")
        return dataclasses.replace(self, **{name: value})


def chat(
    engine: Engine,
    settings: Settings | None = None,
    *,
    read: Callable[[], str] | None = None,
    out: TextIO | None = None,
) -> None:
    """Talks until `/quit` or the end of the input.

    Args:
      engine: the model.
      settings: how to sample at first.
      read: returns one line of the user's; default: prompt_toolkit on a terminal, plain input elsewhere.
      out: where replies go; default: standard output.
    """
    session = _Session(engine, settings or Settings(), out or sys.stdout)
    read = read or _reader()
    session.say("Type a message, or /help. Ctrl-C stops a reply, Ctrl-D leaves.")
    while True:
        try:
            line = read().strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            session.say("(Ctrl-D or /quit leaves)")
            continue
        if line == "/quit":
            return
        try:
            session.handle(line)
        except UserError as error:
            session.say(f"error: {error}")
        except KeyboardInterrupt:
            session.say("(stopped)")


class _Session:
    """A dialogue, its settings and where it is shown."""

    def __init__(self, engine: Engine, settings: Settings, out: TextIO):
        self.engine, self.settings, self.out = engine, settings, out
        self.dialogue: list[dict] = []
        self.replies = 0
        self.forgotten = 0

    def say(self, text: str, end: str = "\n") -> None:
        print(text, end=end, file=self.out, flush=True)

    def handle(self, line: str) -> None:
        """Answers a message or carries out a command."""
        command, _, rest = line.partition(" ")
        if not line:
            return
        if not line.startswith("/"):
            if self.dialogue and self.dialogue[-1]["role"] == "user":
                self.dialogue.pop()  # Its reply failed; two questions in a row are no dialogue.
            self.dialogue.append({"role": "user", "content": line})
            self.reply()
        elif command not in _COMMANDS:
            raise ConfigError(f"unknown command {command}: did you mean {nearest(command, _COMMANDS)}?")
        elif command == "/help":
            self.say(HELP)
        else:
            getattr(self, f"_{command[1:]}")(rest.strip())

    def reply(self) -> None:
        """Streams the answer to the last question; an interrupted answer is kept as far as it came."""
        pieces: list[str] = []
        stream = None
        try:
            stream = self._stream()
            for piece in stream:
                pieces.append(piece)
                self.say(_printable(piece), end="")
            self.say("" if pieces else "(an empty reply)")
        except KeyboardInterrupt:
            self.say(" (stopped)" if pieces else "(stopped)")
        finally:
            if stream is not None:
                stream.close()
        self.dialogue.append({"role": "assistant", "content": "".join(pieces)})

    def _stream(self) -> Generator[str, None, None]:
        """The engine's stream of the next reply."""
        prompt, room = self._fitting_prompt()
        settings, number = self.settings, self.replies
        self.replies += 1
        return self.engine.stream(
            prompt,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            max_new_tokens=min(settings.max_new_tokens, room),
            seed=(settings.seed + number) % _SEEDS,
        )

    def _fitting_prompt(self) -> tuple[list[dict], int]:
        """The messages to send, less the oldest turns that do not fit, and the tokens left for a reply."""
        context = self.engine.context_length
        reserved = min(self.settings.max_new_tokens, context // 2)
        start, last = 0, len(self.dialogue) - 1
        while True:
            prompt = self._with_system(self.dialogue[start:])
            length = self.engine.prompt_length(prompt)
            if length + reserved <= context or (start == last and length < context):
                break
            if start == last:
                raise ConfigError(
                    f"the message takes {length} tokens, but the model reads {context}: shorten it"
                )
            start += 2
        if start > self.forgotten:
            self.say(
                "(the dialogue is longer than the model's context: the model no longer sees its oldest turns)"
            )
        self.forgotten = start
        return prompt, context - length

    def _with_system(self, dialogue: list[dict]) -> list[dict]:
        system = [{"role": "system", "content": self.settings.system}] if self.settings.system else []
        return [*system, *dialogue]

    def _new(self, rest: str) -> None:
        self.dialogue.clear()
        self.forgotten = 0
        self.say("(a new dialogue)")

    def _retry(self, rest: str) -> None:
        if not self.dialogue:
            raise ConfigError("there is no question to answer again: type one")
        if self.dialogue[-1]["role"] == "assistant":
            self.dialogue.pop()
        self.reply()

    def _undo(self, rest: str) -> None:
        if not self.dialogue:
            raise ConfigError("there is nothing to take back")
        last = max(i for i, message in enumerate(self.dialogue) if message["role"] == "user")
        self.say(f"(took back: {self.dialogue[last]['content']})")
        del self.dialogue[last:]

    def _set(self, rest: str) -> None:
        key, _, text = rest.partition(" ")
        if not key:
            for name, value in dataclasses.asdict(self.settings).items():
                self.say(f"{name} = {value}")
        elif not text and key != "system":
            raise ConfigError(f"write /set {key} VALUE")
        else:
            self.settings = self.settings.set(key, text.strip())

    def _save(self, rest: str) -> None:
        questions, replies = self.dialogue[::2], self.dialogue[1::2]
        answered = [pair for pair in zip(questions, replies, strict=False) if pair[1]["content"].strip()]
        left_out = len(questions) - len(answered)
        if not answered:
            raise ConfigError("there is nothing to save yet: no question has a reply")
        path = Path(rest or "chat.jsonl")
        messages = self._with_system([message for pair in answered for message in pair])
        row = json.dumps({"messages": messages}, ensure_ascii=False)
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(row + "\n")
        except OSError as error:
            raise ConfigError(f"{path} cannot be written ({error.strerror}): name another file") from error
        without = f", less {left_out} without a reply" if left_out else ""
        self.say(f"(appended to {path}{without})")


def _reader() -> Callable[[], str]:
    if hasattr(sys.stdin, "reconfigure"):
        # What a pipe holds may be in any encoding.
        sys.stdin.reconfigure(errors="replace")
    if not sys.stdin.isatty():
        return input
    try:
        from prompt_toolkit import PromptSession
    except ImportError:
        return lambda: input("you> ")
    session = PromptSession()
    return lambda: session.prompt("you> ")


def _printable(text: str) -> str:
    # A model can emit any byte; escape sequences would steer the terminal.
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
