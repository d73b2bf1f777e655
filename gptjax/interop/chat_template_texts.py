"""Chat templates as the texts of Hugging Face's files: recognised, and written.

A template is a program in Jinja, which could take all time and memory: none is ever run. The strings in its
text tell which of the forms of `data/chat_templates.py` it is of.
"""

import json
import re

from gptjax.data.byte_level import IM_END, IM_START
from gptjax.data.chat_templates import PIECES, ChatForm

IM_SEP = "<|im_sep|>"  # Phi's dialogues have it where ChatML's have a line break
# The system message that a ChatML template puts before dialogues without one.
_SYSTEM = re.compile(r"<\|im_start\|>system(?:\\n|\n)([^'\"{}<>]{1,2000})<\|im_end\|>")
_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TURN = (
    r"'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim "
    "+ '<|eot_id|>'"
)
_TURNS = (
    "{% for message in messages %}{{ " + _TURN + " }}{% endfor %}{% if add_generation_prompt %}"
    r"{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_APART = (
    "{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% endif %}"
)
_FIRST = "{% if loop.first and system_message is defined %}"


def _mistral(space: str) -> str:
    return (
        _APART + "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}" + _FIRST
        + r"{{ '[INST] ' + system_message + '\n\n' + message['content'] + ' [/INST]' }}"
        "{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}"
        "{% else %}{{ " + space + "message['content'] + eos_token }}{% endif %}{% endfor %}"
    )  # fmt: skip


# As they are written; of Llama 3.1's what concerns no tools.
TEXTS = {
    "llama2": _APART + "{% for message in messages %}{% set content = message['content'] %}" + _FIRST
    + r"{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}{% endfor %}",
    "mistral": _mistral(""),
    "mistral, spaced": _mistral("' ' + "),
    "llama3": "{{ bos_token }}" + _TURNS,
    "llama3.1": _APART + "{{ bos_token }}{{ '<|start_header_id|>system<|end_header_id|>\\n\\n' }}"
    "{{ 'Cutting Knowledge Date: December 2023\\n' }}"
    "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "{{ 'Today Date: ' + date_string + '\\n\\n' }}"
    "{% if system_message is defined %}{{ system_message | trim }}{% endif %}{{ '<|eot_id|>' }}" + _TURNS,
}  # fmt: skip
# By what the text of a form is known, in the spelling of `_plain`; it is of the first that it fits.
MARKS = {
    "llama2": (
        r"'<<SYS>>\n'+system_message+'\n<</SYS>>\n\n'+message['content']",
        "{{bos_token+'[INST] '+content.strip()+' [/INST]'}}",
        "{{' '+content.strip()+' '+eos_token}}",
    ),
    "mistral": (
        "{{bos_token}}",
        "{{'[INST] '+message['content']+' [/INST]'}}",
        "{{message['content']+eos_token}}",
    ),
    "mistral, spaced": (
        "{{bos_token}}",
        "{{'[INST] '+message['content']+' [/INST]'}}",
        "{{' '+message['content']+eos_token}}",
    ),
    "llama3.1": (
        _TURN.replace(" + ", "+").replace(" | trim", ".strip()"),
        r"{{'Cutting Knowledge Date: December 2023\n'}}",
        r"{{'Today Date: '+date_string+'\n\n'}}",
    ),
    "llama3": (_TURN.replace(" + ", "+").replace(" | trim", ".strip()"), "bos_token"),
}


def recognised(template: str, tokenizer) -> str | None:
    """The form that a template's text is of; None where gptjax, or the tokenizer, does not have it."""
    if IM_START in template:
        taught = tokenizer.chatml and IM_SEP not in template
        return ("bos+chatml" if "bos_token" in template else "chatml") if taught else None
    text, specials = _plain(template), getattr(tokenizer, "specials", {})
    for name, marks in MARKS.items():
        if all(mark in text for mark in marks):
            # Where [INST] is a piece of its own, a model knows it as that and not as letters.
            taught = all(piece in specials for piece in PIECES.get(name, ())) and "[INST]" not in specials
            return name if taught else None
    return None


def system_message(template: str) -> str:
    """The system message that a ChatML template puts before a dialogue without one; "" for none."""
    found = _SYSTEM.search(template)
    return found[1] if found else ""


def chat_template(form: ChatForm) -> str:
    """The form as a template of `transformers`, with the system message for dialogues without one."""
    opening = json.dumps(f"{IM_START}system\n{form.system_message}{IM_END}\n", ensure_ascii=False)
    unless = "{% if messages[0]['role'] != 'system' %}{{ " + opening + " }}{% endif %}"
    chatml = (unless if form.system_message else "") + _CHATML
    written = {"chatml": chatml, "bos+chatml": "{{ bos_token }}" + chatml}
    return written.get(form.template) or TEXTS[form.template]


def _plain(template: str) -> str:
    """The text in one spelling.

    Single quotes, no spaces around operators, `.strip()` for `| trim`, line breaks as backslash and n; no
    space before `[INST]`, where SentencePiece puts one before every text.
    """
    # So many spaces at most, or a long run of them would take forever.
    text = re.sub(r"\s{0,32}([+|])\s{0,32}", r"\1", template.replace('"', "'"))
    text = re.sub(r"\{\{-?\s{0,32}", "{{", re.sub(r"\s{0,32}-?\}\}", "}}", text))
    return text.replace("|trim", ".strip()").replace("\n", r"\n").replace("' [INST]", "'[INST]")
