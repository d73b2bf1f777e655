"""The tokenizer's files of a Hugging Face folder."""

import json
from pathlib import Path

from gptjax.data.byte_level import IM_END, IM_START, ByteLevelTokenizer
from gptjax.data.tokenizers import SPACE_MARK, Tokenizer

_MESSAGES = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_tokenizer(
    folder: Path, tokenizer: Tokenizer | ByteLevelTokenizer, context_length: int, system_message: str
) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json`, and `tokenizer.model` where the tokenizer is one.

    `tokenizer.json` is what `transformers` reads; there typed special pieces are special.
    """
    if isinstance(tokenizer, Tokenizer):
        tokenizer.save(folder / tokenizer.file_name)
        content = json.dumps(sentencepiece_json(tokenizer), ensure_ascii=False)
        (folder / "tokenizer.json").write_text(content, "utf-8")
    else:
        tokenizer.save(folder / "tokenizer.json")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "eos_token": tokenizer.piece(tokenizer.end_of_text_id),
        "pad_token": tokenizer.piece(tokenizer.pad_id),
    }
    if tokenizer.chatml:
        settings["chat_template"] = chat_template(system_message)
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", "utf-8")


def chat_template(system_message: str) -> str:
    """ChatML as a template of `transformers`, with the system message for dialogues without one."""
    if not system_message:
        return _MESSAGES
    opening = json.dumps(f"{IM_START}system\n{system_message}{IM_END}\n", ensure_ascii=False)
    return "{% if messages[0]['role'] != 'system' %}{{ " + opening + " }}{% endif %}" + _MESSAGES


def sentencepiece_json(tokenizer: Tokenizer) -> dict:
    """Our SentencePiece model as a `tokenizer.json`: the same pieces, and its scores as an order of merges.

    The ids are the same for every text without the character U+2581, which SentencePiece has for a space.
    """
    pieces, normal = tokenizer.pieces(), {}
    for id, (piece, score, kind) in enumerate(pieces):
        if kind == "normal":
            normal[piece] = (score, id)
    merges = []
    for piece, (score, _) in normal.items():
        splits = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        found = [(left, right) for left, right in splits if left in normal and right in normal]
        found.sort(key=lambda pair: (normal[pair[0]][1], normal[pair[1]][1]))
        merges += [(-score, *pair) for pair in found]
    merges.sort(key=lambda merge: merge[0])
    entry = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    # Pieces that are cut out first are found in the text as it is, where spaces are spaces.
    written = [piece.replace(SPACE_MARK, " ") if kind == "user" else piece for piece, _, kind in pieces]
    added = [
        entry | {"id": id, "content": written[id], "special": kind == "control"}
        for id, (_, _, kind) in enumerate(pieces)
        if kind in ("control", "user")
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": pieces[1][0],
            "byte_fallback": True,
            "vocab": {piece: id for id, piece in enumerate(written)},
            "merges": [list(pair) for _, *pair in merges],
        },
    }
