"""The tokenizer's files of a Hugging Face folder, read and written."""

import json
from pathlib import Path

from gptjax.data.byte_level import ByteLevelTokenizer, from_vocab_and_merges
from gptjax.data.chat_templates import CHATML, ChatForm
from gptjax.data.metaspace import MetaspaceTokenizer, writes_bytes
from gptjax.data.quality import DataError
from gptjax.data.sentencepieces import SentencePieceTokenizer, published
from gptjax.data.tokenizer_json import read_bounded
from gptjax.data.tokenizers import SPACE_MARK, Tokenizer
from gptjax.data.word_bpe import END_OF_WORD, WordBpeTokenizer, marks_words
from gptjax.data.wordpiece import WordPieceTokenizer, is_wordpiece
from gptjax.interop.chat_template_texts import chat_template
from gptjax.interop.safetensors import read_json
from gptjax.stages.handover import AnyTokenizer


def read_tokenizer(folder: Path) -> AnyTokenizer:
    """The tokenizer of a folder.

    `tokenizer.model` with what `added_tokens.json` adds, where it is SentencePiece's; else `tokenizer.json`,
    `vocab.txt`, or `vocab.json` and `merges.txt`, whichever is there first.

    Raises:
        DataError: there is none, or one of another kind.
    """
    pieces, whole = folder / "tokenizer.model", folder / "tokenizer.json"
    if pieces.is_file():
        added = folder / "added_tokens.json"
        try:
            begins = _settings(folder).get("add_bos_token", True)
            further = read_json(added) if added.is_file() else {}
            return published(read_bounded(pieces), further, begins=begins is not False)
        except DataError as error:
            if not whole.is_file():
                raise DataError(f"{pieces}: {error}") from error
    if whole.is_file():
        return _of_json(whole)
    if (folder / "vocab.txt").is_file():
        settings = _settings(folder)
        lower, accents = settings.get("do_lower_case", True), settings.get("strip_accents")
        return WordPieceTokenizer.from_vocab(folder / "vocab.txt", lower_case=lower, strip_accents=accents)
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if vocab.is_file() and merges.is_file():
        found = read_json(vocab)
        if any(piece.endswith(END_OF_WORD) for piece in found):
            return WordBpeTokenizer.from_vocab_and_merges(found, merges)
        return from_vocab_and_merges(found, merges)
    raise DataError(f"{folder} holds no tokenizer.json: copy it from where the model comes from")


def _of_json(path: Path) -> ByteLevelTokenizer | WordPieceTokenizer | WordBpeTokenizer:
    content = read_bounded(path)
    if is_wordpiece(content):
        return WordPieceTokenizer.load(path)
    if writes_bytes(content):
        return MetaspaceTokenizer.load(path)
    return WordBpeTokenizer.load(path) if marks_words(content) else ByteLevelTokenizer.load(path)


def _settings(folder: Path) -> dict:
    path = folder / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}


def write_tokenizer(folder: Path, tokenizer: AnyTokenizer, context_length: int, chat: ChatForm) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json`, and `tokenizer.model` where the tokenizer is one.

    `tokenizer.json` is what `transformers` reads; there typed special pieces are special.
    """
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "pad_token": tokenizer.piece(tokenizer.pad_id),
    }
    if isinstance(tokenizer, Tokenizer):
        tokenizer.save(folder / tokenizer.file_name)
        content = json.dumps(sentencepiece_json(tokenizer), ensure_ascii=False)
        (folder / "tokenizer.json").write_text(content, "utf-8")
    elif isinstance(tokenizer, SentencePieceTokenizer):
        tokenizer.save(folder / "tokenizer.model")
        begins = tokenizer.bos_id is not None
        settings |= {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": begins}
    else:
        tokenizer.save(folder / "tokenizer.json")
    if isinstance(tokenizer, WordPieceTokenizer):
        specials = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
        settings |= {f"{name}_token": piece for name, piece in specials.items()}
    elif isinstance(tokenizer, WordBpeTokenizer):
        settings["unk_token"] = tokenizer.piece(tokenizer.unknown_id)
    else:
        settings["eos_token"] = tokenizer.piece(tokenizer.end_of_text_id)
    if tokenizer.bos_id is not None:
        settings["bos_token"] = tokenizer.piece(tokenizer.bos_id)
    if tokenizer.chatml or chat.template not in CHATML:
        settings["chat_template"] = chat_template(chat)
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", "utf-8")


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
