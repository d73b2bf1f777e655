"""The forms of dialogue that published models were taught, as fixed Python; ChatML is in `data/chat.py`.

Sources: Touvron et al. 2023 (Llama 2, arXiv 2307.09288), Jiang et al. 2023 (Mistral 7B, arXiv 2310.06825) and
the reference code of Llama 3; the spaces are those of the templates that were published with the weights.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from gptjax.data.chat import Messages, render_prompt
from gptjax.data.quality import DataError

Part = str | int  # a text, which never becomes a special id, or an id
CHATML = ("chatml", "bos+chatml")
# What Llama 3.1's template says in every dialogue; the date is the one it has where it is given no other.
KNOWLEDGE = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


@dataclass(frozen=True)
class ChatForm:
    """How a model is talked to.

    Attributes:
        system_message: put before a dialogue without a system message; "" for nothing.
        template: one of CHATML, or a key of TEMPLATES.
        stop_ids: tokens that end a reply, besides those of the template.
        sampling: settings of the chat -> the model's own defaults.
    """

    system_message: str = ""
    template: str = "chatml"
    stop_ids: tuple[int, ...] = ()
    sampling: dict[str, float] = field(default_factory=dict)


PLAIN = ChatForm()


def prompt_ids(messages: Messages, tokenizer, template: str = "chatml") -> list[int]:
    """The ids of a dialogue in one of the forms, ending where the model speaks next."""
    if template in CHATML:
        before = _begin(tokenizer) if template == "bos+chatml" else []
        return [*before, *render_prompt(messages, tokenizer)]
    ids: list[int] = []
    for part in TEMPLATES[template](messages, tokenizer):
        ids += [part] if isinstance(part, int) else tokenizer.encode(part)
    return ids


def stop_ids(tokenizer, form: ChatForm) -> list[int]:
    """The tokens that end a reply, each once."""
    ends = [tokenizer.specials[piece] for piece in PIECES.get(form.template, ())[-1:]]
    if form.template in CHATML and tokenizer.chatml:
        ends = [tokenizer.im_end_id]
    with suppress(DataError):  # GPT-1's tokenizer has no piece for the end of a text
        ends.append(tokenizer.end_of_text_id)
    return list(dict.fromkeys((*ends, *form.stop_ids)))


def check_can_chat(tokenizer, template: str) -> None:
    """Refuses a tokenizer without pieces that frame messages, where ChatML needs them.

    Raises:
        DataError: naming what can be talked to.
    """
    if template in CHATML and not tokenizer.chatml:
        raise DataError(
            "the tokenizer has no pieces that frame messages, so the model can't chat: import one that was "
            f"taught {', '.join((CHATML[0], *TEMPLATES))}"
        )


def _llama2(messages: Messages, tokenizer) -> list[Part]:
    """`<s>[INST] <<SYS>>\\nsystem\\n<</SYS>>\\n\\nuser [/INST] assistant </s>` for each turn of the two."""
    before, turns = _apart(messages, "<<SYS>>\n{}\n<</SYS>>\n\n")
    parts: list[Part] = []
    for message in turns:
        if message["role"] == "user":
            parts += [*_begin(tokenizer), f"[INST] {(before + message['content']).strip()} [/INST]"]
            before = ""
        else:
            parts[-1] += f" {message['content'].strip()} "
            parts.append(tokenizer.end_of_text_id)
    return parts


def _mistral(messages: Messages, tokenizer, space: str) -> list[Part]:
    """`<s>[INST] user [/INST]assistant</s>[INST] user [/INST]`, the system message before the first question.

    The later form has a space before the assistant's words; the one it also writes before `[INST]` is that
    which SentencePiece puts before every text.
    """
    before, turns = _apart(messages, "{}\n\n")
    parts = _begin(tokenizer)
    for message in turns:
        if message["role"] == "user":
            parts.append(f"[INST] {before}{message['content']} [/INST]")
            before = ""
        else:
            parts[-1] += space + message["content"]
            parts.append(tokenizer.end_of_text_id)
    return parts


def _llama3(messages: Messages, tokenizer) -> list[Part]:
    """`<|start_header_id|>role<|end_header_id|>\\n\\ncontent<|eot_id|>` after `<|begin_of_text|>`."""
    start, end, over = (tokenizer.specials[piece] for piece in PIECES["llama3"])
    parts = _begin(tokenizer)
    for message in messages:
        parts += [start, message["role"], end, f"\n\n{message['content'].strip()}", over]
    return [*parts, start, "assistant", end, "\n\n"]


def _llama31(messages: Messages, tokenizer) -> list[Part]:
    """Llama 3's, with a system message in every dialogue, before which stands KNOWLEDGE."""
    system, turns = _apart(messages, "{}")
    parts = _llama3([{"role": "system", "content": ""}, *turns], tokenizer)
    parts[parts.index("\n\n")] += KNOWLEDGE + system.strip()
    return parts


TEMPLATES: dict[str, Callable[[Messages, object], list[Part]]] = {
    "llama2": _llama2,
    "mistral": partial(_mistral, space=""),
    "mistral, spaced": partial(_mistral, space=" "),
    "llama3": _llama3,
    "llama3.1": _llama31,
}
# The special pieces that a form needs; the last ends a message.
PIECES = dict.fromkeys(("llama3", "llama3.1"), ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"))


def _begin(tokenizer) -> list[Part]:
    return [] if tokenizer.bos_id is None else [tokenizer.bos_id]


def _apart(messages: Messages, form: str) -> tuple[str, Messages]:
    """The system message in a form with a place for it, "" where there is none, and the other messages."""
    if messages[:1] and messages[0]["role"] == "system":
        return form.format(messages[0]["content"]), messages[1:]
    return "", messages
