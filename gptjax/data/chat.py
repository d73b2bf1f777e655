"""Dialogues: ChatML rendering with the loss on what the assistant says, and the readers.

ChatML (OpenAI, 2023) writes a message as `<|im_start|>role\\ncontent<|im_end|>\\n`.
"""

import json
from functools import lru_cache
from importlib import resources
from pathlib import Path

from gptjax.data.files import (
    Split,
    check_split,
    held_out_keys,
    is_path,
    is_utf8,
    read_jsonl,
    source_files,
    unknown_source,
)
from gptjax.data.instructions import dialogue_of_instruction
from gptjax.data.quality import BadRows, DataError, missing_of
from gptjax.data.sums import sums
from gptjax.data.tokenizers import Tokenizer, encode_after_special, encode_on
from gptjax.errors import require

Messages = list[dict[str, str]]
Origin = tuple[str, int]  # a file and the line of the row, from 1
ROLES = ("system", "user", "assistant")
HELD_OUT = 10  # one in ten

# Dialogues of PyPI chatterbot-corpus by the name of the source -> the folder of their language.
CHATTERBOT = {"chatterbot": "english", "chatterbot-chinese": "chinese"}
BUNDLED = (*CHATTERBOT, "sums")
# In these files of chatterbot-corpus the lines after the first are not turns but other answers to it.
ALTERNATIVES = ("computers", "emotion")
EXCLUDED = {
    "psychology": "insults, to which the bot agrees",
    "Bend over": "sexual",
    "Can you mate": "sexual",
    "what is teknolust": "sexual",
    "The male of what species testicles explode on mating and then dies?": "crude",
    "In which city did Hitler commit suicide?": "suicide",
    "WHO IS THE BEST SOCCER PLAYER": "drugs",
    "I hope that you die": "abusive",
    "Robots should die": "abusive",
    "que veut dire hal": "not English",
    "弯腰": "sexual",
    "你能交配": "sexual",
    "什么是teknolust": "sexual",
    "当teknolust做": "sexual",
    "谁是最好的足球PLAYER": "drugs",
    "我希望你死": "abusive",
    "机器人应该死": "abusive",
    "阙veut可怕HAL": "not Chinese",
}


@lru_cache(maxsize=64)
def header(role: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """`<|im_start|>role\\n`."""
    return (tokenizer.im_start_id, *encode_after_special(tokenizer, f"{role}\n"))


@lru_cache(maxsize=64)
def newline_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The line break after each message."""
    return tuple(encode_after_special(tokenizer, "\n"))


def render_prompt(messages: Messages, tokenizer: Tokenizer) -> list[int]:
    """The ids of `messages` in ChatML, ending after `<|im_start|>assistant\\n`: the model speaks next."""
    return [*render_dialogue(messages, tokenizer)[0], *header("assistant", tokenizer)]


def render_dialogue(messages: Messages, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids of `messages` in ChatML and a mask of equal length.

    The mask is 1 on the content of the assistant's messages and on the `<|im_end|>` after them, else 0.
    """
    ids: list[int] = []
    mask: list[int] = []
    newline = newline_ids(tokenizer)
    for message in messages:
        before = header(message["role"], tokenizer)
        said = [*encode_on(tokenizer, message["content"]), tokenizer.im_end_id]
        ids += [*before, *said, *newline]
        spoken = int(message["role"] == "assistant")
        mask += [0] * len(before) + [spoken] * len(said) + [0] * len(newline)
    return ids, mask


def read_dialogues(
    name_or_path: str | Path, *, split: Split = "train", bad_rows: BadRows | None = None
) -> list[Messages]:
    """The dialogues of one split of a source of `BUNDLED` or of JSONL files with a field `messages`.

    A row with an `instruction` in its place is a dialogue of two messages (`data/instructions.py`).
    A message is `{"role": "system" | "user" | "assistant", "content": str}`; a dialogue may open with one
    system message, then user and assistant alternate. A last user turn without a reply is dropped, as are
    dialogues that occur twice. Held out are the dialogues whose opening has sha256 0 mod 10, so a question
    asked in training is not asked again in the held-out part; where that is none, those of one opening.
    The counts of the source are added to `bad_rows`; the limit is on this source alone.

    Raises DataError for an unknown name, for a split without a dialogue and for more than 0.1 % bad rows;
    MissingPackage when chatterbot-corpus is not installed.
    """
    return [messages for messages, _ in located_dialogues(name_or_path, split=split, bad_rows=bad_rows)]


def located_dialogues(
    name_or_path: str | Path, *, split: Split = "train", bad_rows: BadRows | None = None
) -> list[tuple[Messages, Origin | None]]:
    """What `read_dialogues` returns, each dialogue with the place of its row; None for a bundled one."""
    check_split(split)
    own_rows = BadRows()
    if str(name_or_path) in CHATTERBOT:
        language = CHATTERBOT[str(name_or_path)]
        dialogues = [(messages, None) for _, messages in chatterbot(own_rows, language)]
    elif str(name_or_path) == "sums":
        dialogues = [(messages, None) for messages in sums()]
    elif is_path(name_or_path):
        files = source_files(name_or_path, (".jsonl",))
        dialogues = [row for file in files for row in rows_of_jsonl(file, own_rows)]
    else:
        raise DataError(unknown_source(name_or_path, BUNDLED))
    first: dict[str, tuple[Messages, Origin | None]] = {}
    for messages, origin in dialogues:
        first.setdefault(json.dumps(messages), (messages, origin))
    own_rows.repeat(len(dialogues) - len(first))
    if bad_rows is not None:
        bad_rows.include(own_rows)
    own_rows.check()
    openings = [opening(messages) for messages, _ in first.values()]
    heldout = held_out_keys(openings, HELD_OUT)
    chosen = [
        row
        for row, said in zip(first.values(), openings, strict=True)
        if (said in heldout) == (split == "heldout")
    ]
    if not chosen:
        raise DataError(
            f"{name_or_path} has no {split} dialogue among its {len(first)} "
            f"({len(set(openings))} different openings): add more"
        )
    return chosen


def opening(dialogue: Messages) -> str:
    """What the user says first, in lower case and without the punctuation at its ends."""
    first = next(message["content"] for message in dialogue if message["role"] == "user")
    return " ".join(first.lower().split()).strip(" .?!'\"")


def chatterbot(bad_rows: BadRows, language: str = "english") -> list[tuple[str, Messages]]:
    """The dialogues of PyPI chatterbot-corpus in a language, duplicates too, each with its topic (the file).

    Raises MissingPackage when the corpus or its parser is not installed.
    """
    require("yaml", "chatterbot_corpus")
    import yaml

    dialogues = []
    folder = resources.files("chatterbot_corpus") / "data" / language
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        topic = file.name.removesuffix(".yml")
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
        conversations = next(value for key, value in root.value if key.value == "conversations")
        for node in conversations.value:
            # One row of the corpus is a string, not a list: its two lines ran together.
            sequence = node.value if isinstance(node, yaml.SequenceNode) else [node]
            lines = [line.value.strip() for line in sequence]
            if topic in EXCLUDED or lines[0] in EXCLUDED:
                continue
            if len(lines) < 2:
                bad_rows.add("no reply", file, node.start_mark.line + 1)
                continue
            bad_rows.good()
            replies = [[reply] for reply in lines[1:]] if topic in ALTERNATIVES else [lines[1:]]
            dialogues += [(topic, alternate([lines[0], *reply])) for reply in replies]
    return dialogues


def alternate(lines: list[str]) -> Messages:
    """User and assistant in turn, the user first; a last user line without a reply is dropped."""
    lines = lines[: len(lines) // 2 * 2]
    return [{"role": ROLES[1 + turn % 2], "content": line} for turn, line in enumerate(lines)]


def rows_of_jsonl(file: Path, bad_rows: BadRows) -> list[tuple[Messages, Origin]]:
    """The good dialogues of a JSONL file, each with its place."""
    dialogues = []
    for line, row in read_jsonl(file, bad_rows):
        kind, dialogue = checked_dialogue(row)
        if kind:
            bad_rows.add(kind, file, line)
        else:
            bad_rows.good()
            dialogues.append((dialogue, (str(file), line)))
    return dialogues


def checked_dialogue(row: dict) -> tuple[str, Messages]:
    """The kind of fault of a row ("" for none) and its dialogue, a last user turn without a reply dropped."""
    if "messages" not in row:
        return dialogue_of_instruction(row) if "instruction" in row else ("missing field: messages", [])
    kind = fault_of_messages(row["messages"])
    if kind:
        return kind, []
    dialogue = [{"role": message["role"], "content": message["content"]} for message in row["messages"]]
    if dialogue and dialogue[-1]["role"] != "assistant":
        dialogue = dialogue[:-1]
    return ("", dialogue) if any(m["role"] == "assistant" for m in dialogue) else ("no reply", [])


def fault_of_messages(messages) -> str:
    """The kind of the first fault in a list of messages, "" when the list is sound."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return "malformed field: a dialogue must be a list of messages"
    for message in messages:
        if missing := missing_of(message, ("role", "content")):
            return missing
    if not all(isinstance(message["content"], str) for message in messages):
        return "malformed field: content must be text"
    if not all(is_utf8(message["content"]) for message in messages):
        return "not UTF-8"
    if not all(message["content"].strip() for message in messages):
        return "empty text"
    roles = [message["role"] for message in messages]
    turns = roles[roles[:1] == ["system"] :]
    in_turn = all(role == ROLES[1 + turn % 2] for turn, role in enumerate(turns))
    return "" if in_turn else "unknown role"
