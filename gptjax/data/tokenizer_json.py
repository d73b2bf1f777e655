"""The file `tokenizer.json`: made of the lists that GGUF holds, and checked.

Format: https://huggingface.co/docs/tokenizers.
"""

import json
from pathlib import Path

from gptjax.data.quality import DataError

# A tokenizer of 256,000 pieces takes about 20 MB.
LARGEST_FILE = 128 * 2**20
# Kinds of pieces in GGUF. Unused ones fill the list up to the model's number of ids.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_GPT2 = [_BYTES | {"use_regex": True}]
_DIGITS = [{"type": "Digits", "individual_digits": True}, *_GPT2]


def _split(pattern: str) -> list[dict]:
    return [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, _BYTES]


# GGUF's `tokenizer.ggml.pre` -> how text is cut before pieces are merged.
CUTS = {
    "gpt-2": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "codeshell": _DIGITS,
    "llama-bpe": _split(_LLAMA3),
    "llama3": _split(_LLAMA3),
    "qwen2": _split(_QWEN2),
}


# The rules of tokenizers that put a piece before a text, unless the file says otherwise.
LLAMA3_CUTS = ("llama-bpe", "llama3")


def tokenizer_json(
    pieces: list[str], kinds: list[int] | None, merges: list[str], cut: str, begin: int | None = None
) -> bytes:
    """The file for these pieces; arguments and errors as `ByteLevelTokenizer.from_pieces`."""
    if not isinstance(cut, str) or cut not in CUTS:
        raise DataError(f"the tokenizer cuts text by the rule {cut!r}: known are {', '.join(CUTS)}")
    if len(set(pieces)) != len(pieces):
        raise DataError(f"the tokenizer lists {len(pieces) - len(set(pieces))} of its pieces twice")
    if kinds is not None and len(kinds) != len(pieces):
        raise DataError(f"the tokenizer has {len(pieces)} pieces, but the kinds of {len(kinds)}")
    pairs = [merge.split(" ") for merge in merges]
    if not all(len(pair) == 2 for pair in pairs):
        raise DataError("the tokenizer has merges that are not two pieces with a space between them")
    kinds = kinds or [NORMAL] * len(pieces)
    if begin is not None and (not 0 <= begin < len(pieces) or kinds[begin] != CONTROL):
        raise DataError(f"the tokenizer begins a text with the id {begin}, which is no control piece")
    added = [
        {"id": id, "content": piece, "special": kind == CONTROL, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for id, (piece, kind) in enumerate(zip(pieces, kinds, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    used = {piece: id for id, (piece, kind) in enumerate(zip(pieces, kinds, strict=True)) if kind != UNUSED}
    steps = CUTS[cut]
    description = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None if begin is None else _before_text(pieces[begin], begin),
        "decoder": _BYTES,
        "model": {
            "type": "BPE",
            "vocab": used,
            "merges": pairs,
            "ignore_merges": cut in LLAMA3_CUTS,
        },
    }
    return json.dumps(description, ensure_ascii=False).encode()


def _before_text(piece: str, id: int) -> dict:
    """The `post_processor` that puts a special piece before a text."""
    special, text = {"SpecialToken": {"id": piece, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special, text],
        "pair": [special, text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {piece: {"id": piece, "ids": [id], "tokens": [piece]}},
    }


def beginning_piece(description: dict) -> str | None:
    """The special piece that a file puts before a text; None where it puts none."""

    def part(value, key):
        return value.get(key) if isinstance(value, dict) else None

    step = description.get("post_processor")
    steps = part(step, "processors") if part(step, "type") == "Sequence" else [step]
    for step in steps if isinstance(steps, list) else []:
        single = part(step, "single") if part(step, "type") == "TemplateProcessing" else None
        piece = part(part(single[0], "SpecialToken"), "id") if isinstance(single, list) and single else None
        if isinstance(piece, str):
            return piece
    return None


def cut_name(description: dict) -> str | None:
    """The rule of a byte-level BPE by its name in GGUF; None where it has none, or where text is changed."""

    def plain(step):
        if isinstance(step, dict) and step.get("type") == "ByteLevel":
            defaults = {"add_prefix_space": True, "trim_offsets": True, "use_regex": True}
            return {**defaults, **step, "trim_offsets": True}
        return step

    cut = description.get("pre_tokenizer")
    steps = cut["pretokenizers"] if cut.get("type") == "Sequence" else [cut]
    if description.get("normalizer") is not None:
        return None
    return next((name for name, known in CUTS.items() if known == [plain(step) for step in steps]), None)


def read_bounded(path: Path) -> bytes:
    """A tokenizer's file. Raises DataError when it is missing, or larger than such a file is."""
    if not path.is_file():
        raise DataError(f"there is no tokenizer at {path}: name another file")
    if path.stat().st_size > LARGEST_FILE:
        raise DataError(f"{path} has {path.stat().st_size} bytes, more than a tokenizer takes")
    return path.read_bytes()


def merge_pairs(path: Path) -> list[str]:
    """The lines of a `merges.txt`, "left right", the earliest first. Raises DataError as `read_bounded`."""
    lines = read_bounded(path).decode("utf-8", errors="replace").split("\n")
    return [line for line in lines if line and not line.startswith("#version")]


def parse_bpe(content: bytes) -> dict:
    """The JSON of a `tokenizer.json` of a byte pair encoding."""
    try:
        description = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"this is not a tokenizer.json: {error}") from error
    model = description.get("model") if isinstance(description, dict) else None
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise DataError("this is not the tokenizer.json of a byte pair encoding")
    return description


def parse(content: bytes) -> dict:
    """The JSON of a byte-level BPE, its parts of the kinds they have to be."""
    description = parse_bpe(content)
    cut = description.get("pre_tokenizer")
    steps = cut.get("pretokenizers") if isinstance(cut, dict) and cut.get("type") == "Sequence" else [cut]
    if not isinstance(steps, list) or not any(
        isinstance(step, dict) and step.get("type") == "ByteLevel" for step in steps
    ):
        raise DataError("this tokenizer does not work on bytes: import one whose pre_tokenizer is ByteLevel")
    return description


def checked_vocab(description: dict) -> tuple[dict[str, int], dict[str, bool]]:
    """Piece -> id of all pieces, and added piece -> whether it is special."""
    vocab, added = description["model"].get("vocab"), description.get("added_tokens") or []
    if not isinstance(vocab, dict) or not vocab or not isinstance(added, list):
        raise DataError("this tokenizer.json has no list of pieces")
    vocab, special = dict(vocab), {}
    for entry in added:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise DataError("an entry of added_tokens has no content")
        piece = entry["content"]
        if vocab.setdefault(piece, entry.get("id")) != entry.get("id"):
            raise DataError(f"the added piece {piece!r} has the id {entry.get('id')} and {vocab[piece]}")
        special[piece] = bool(entry.get("special"))
    ids = vocab.values()
    # Ids may leave gaps, but not so many that a list by id would fill the memory.
    if not all(type(id) is int and 0 <= id < 2 * len(vocab) + 1024 for id in ids):
        raise DataError(f"the ids of the {len(vocab)} pieces are not numbers from 0")
    if len(set(ids)) != len(vocab):
        raise DataError("several pieces of the tokenizer have one id")
    return vocab, special


def check_merges(description: dict, pieces: set[str], end_of_word: str = "") -> None:
    """Refuses merges of, or into, what is no piece: the library `tokenizers` would abort with a backtrace.

    Args:
        description: the parsed file.
        pieces: those that text may become, which special ones are not.
        end_of_word: what marks the end of a word.
    """
    model = description["model"]
    merges = model.get("merges")
    if model.get("continuing_subword_prefix") or (model.get("end_of_word_suffix") or "") != end_of_word:
        raise DataError(
            f"this tokenizer marks the inside of words, or their end otherwise than with {end_of_word!r}"
        )
    if not isinstance(merges, list):
        raise DataError("this tokenizer.json has no list of merges")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise DataError(f"the merge {merge!r} is not two pieces")
        if not pieces.issuperset((*pair, "".join(pair))):
            raise DataError(f"the merge {merge!r} is of or into what no text may become")
