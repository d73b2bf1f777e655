"""SentencePiece's pieces in a `tokenizer.json`, as LLaMA's come without their `tokenizer.model`.

A space is a character of its own, which may be put before the text; a character without a piece is written in
bytes. The library `tokenizers` cuts and merges; what is special is decided as in `data/byte_level.py`.
"""

import json
import re
from collections.abc import Iterable
from functools import cached_property

from gptjax.data.byte_level import ByteLevelTokenizer
from gptjax.data.quality import DataError
from gptjax.data.tokenizer_json import parse_bpe
from gptjax.data.tokenizers import SPACE_MARK, refuse_surrogates

_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
_PREPEND = {"type": "Prepend", "prepend": SPACE_MARK}
# How spaces become characters before pieces are merged -> whether one is put before the text.
NORMALIZERS = [({"type": "Sequence", "normalizers": [_PREPEND, _REPLACE]}, True), (_REPLACE, False)]


class MetaspaceTokenizer(ByteLevelTokenizer):
    """Such a tokenizer, with the interface of `data.tokenizers.Tokenizer`.

    Text can never produce a special id. The character U+2581 counts as a space.

    Attributes:
        prefix: whether a space is put before the text.
        prefix_once: whether it is put before the first text alone, and not after special pieces.
        file_name: what the file, a `tokenizer.json`, is called in a run folder.
    """

    file_name = "metaspace.json"

    def encode_on(self, text: str) -> list[int]:
        """As `encode`, of a text that follows another: no space is put before it."""
        refuse_surrogates(text)
        return self._going_on.encode(text, add_special_tokens=False).ids

    @cached_property
    def _going_on(self):
        import tokenizers

        body = json.loads(self._backend.to_str())
        if body["pre_tokenizer"] is None:
            body["normalizer"] = _REPLACE
        else:
            body["pre_tokenizer"]["prepend_scheme"] = "never"
        return tokenizers.Tokenizer.from_str(json.dumps(body))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without the space before it; special ids give nothing."""
        content = b"".join(map(self.token_bytes, ids))
        return (content.removeprefix(b" ") if self.prefix else content).decode("utf-8", errors="replace")

    def _parsed(self, content: bytes) -> dict:
        description = parse_bpe(content)
        vocab = description["model"].get("vocab")
        if not isinstance(vocab, dict) or not all(f"<0x{byte:02X}>" in vocab for byte in range(256)):
            raise DataError("this tokenizer lacks pieces for bytes, with which it would write the unknown")
        cut = description.get("pre_tokenizer")
        self.prefix = _prefix(description.get("normalizer"), cut)
        self.prefix_once = cut is not None and cut.get("prepend_scheme") == "first"
        return description

    def _piece_bytes(self, piece: str) -> bytes:
        if re.fullmatch("<0x[0-9A-F]{2}>", piece):
            return bytes([int(piece[1:-1], 16)])
        return piece.replace(SPACE_MARK, " ").encode("utf-8", errors="replace")


def writes_bytes(content: bytes) -> bool:
    """Whether a `tokenizer.json` writes in bytes what has no piece, as SentencePiece's do."""
    try:
        return json.loads(content)["model"]["byte_fallback"] is True
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _prefix(normalizer, cut) -> bool:
    """Whether a space is put before the text. Raises DataError where spaces are treated otherwise."""
    if cut is None:
        for known, prefix in NORMALIZERS:
            if normalizer == known:
                return prefix
    elif normalizer is None and isinstance(cut, dict) and cut.get("type") == "Metaspace":
        if cut.get("replacement") == SPACE_MARK:
            return cut.get("prepend_scheme", "always") != "never"
    raise DataError(
        f"this tokenizer changes and cuts text otherwise than SentencePiece: {normalizer!r}, {cut!r}"
    )
