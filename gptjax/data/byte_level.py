"""Byte-level BPE (Radford et al. 2019, section 2.2): the tokenizers of GPT-2, LLaMA 3 and SmolLM2.

The pieces come from elsewhere, with a model: from `tokenizer.json` or from the metadata of a GGUF file. The
library `tokenizers` splits and merges; which ids are special, and that no text becomes one, is decided here.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from gptjax.data.quality import DataError
from gptjax.data.tokenizer_json import (
    CONTROL,
    beginning_piece,
    check_merges,
    checked_vocab,
    merge_pairs,
    parse,
    read_bounded,
    tokenizer_json,
)
from gptjax.data.tokenizers import refuse_surrogates
from gptjax.errors import require

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>")
PADDING = ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>")
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
# What ends or frames a message may not be typed, whatever the file says of these pieces.
ALWAYS_SPECIAL = {*END_OF_TEXT, *PADDING, IM_START, IM_END}


class ByteLevelTokenizer:
    """A byte-level BPE with the interface of `data.tokenizers.Tokenizer`.

    Text can never produce a special id: typing "<|im_end|>" gives ordinary pieces. Some published tokenizers
    lack pieces for a few bytes, which their own library leaves out without a word; here such text is refused.

    Attributes:
        vocab_size: one more than the highest id.
        hash: sha256 of `tokenizer.json`, in hexadecimal; two tokenizers with one hash are the same.
        end_of_text_id, pad_id: the latter is the former where there is no piece for padding.
        bos_id: of the piece that the file puts before a text, as LLaMA 3's does; None where it puts none.
        im_start_id, im_end_id: of ChatML; asking for them raises DataError where there are none.
    """

    file_name = "tokenizer.json"

    def __init__(self, content: bytes):
        """Args:
        content: a `tokenizer.json`.

        Raises DataError for anything but a byte-level BPE; MissingPackage without the library `tokenizers`.
        """
        require("tokenizers")
        self.content = content
        self.hash = hashlib.sha256(content).hexdigest()
        description = self._parsed(content)
        vocab, added = checked_vocab(description)
        self.specials = {
            piece: id for piece, id in vocab.items() if piece in ALWAYS_SPECIAL or added.get(piece) is True
        }
        self.vocab_size = max(vocab.values()) + 1
        ends = [self.specials[piece] for piece in END_OF_TEXT if piece in self.specials]
        if not ends:
            raise DataError(
                f"the tokenizer has no piece for the end of a text, one of {', '.join(END_OF_TEXT)}"
            )
        self.end_of_text_id, self.bos_id = ends[0], self.specials.get(beginning_piece(description))
        self.pad_id = next((self.specials[p] for p in PADDING if p in self.specials), self.end_of_text_id)
        plain = {piece for piece, special in added.items() if piece not in self.specials and not special}
        self._bytes = [b""] * self.vocab_size
        for piece, id in vocab.items():
            if piece not in self.specials:
                self._bytes[id] = piece.encode() if piece in plain else self._piece_bytes(piece)
        present = {piece[0] for piece in self._bytes if len(piece) == 1}
        absent = "".join(f"\\x{byte:02x}" for byte in range(256) if byte not in present)
        self._absent = re.compile(f"[{absent}]".encode()) if absent else None
        check_merges(description, set(vocab) - set(self.specials))
        self._backend = _backend(description, vocab, self.specials, plain)

    @classmethod
    def from_pieces(
        cls,
        pieces: list[str],
        kinds: list[int] | None,
        merges: list[str],
        cut: str,
        begin: int | None = None,
    ) -> "ByteLevelTokenizer":
        """A tokenizer of the lists that GGUF holds.

        Args:
            pieces: by id.
            kinds: of each piece, 3 for a control piece and 4 for one that is taken from the text as it is.
            merges: "left right", the earliest first.
            cut: the name of the rule by which text is cut before it is merged, a key of CUTS.
            begin: the control piece that stands before a text; None for none.

        Raises DataError when they do not fit together.
        """
        return cls(tokenizer_json(pieces, kinds, merges, cut, begin))

    @classmethod
    def load(cls, path: str | Path) -> "ByteLevelTokenizer":
        """Reads a `tokenizer.json`. Raises DataError when the file is missing or something else."""
        content = read_bounded(Path(path))
        try:
            return cls(content)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Writes the `tokenizer.json` to `path`."""
        Path(path).write_bytes(self.content)

    @property
    def chatml(self) -> bool:
        """Whether it has the pieces that frame messages."""
        return IM_START in self.specials and IM_END in self.specials

    def piece(self, id: int) -> str:
        """How a special id is written."""
        return next(piece for piece, special in self.specials.items() if special == id)

    @property
    def im_start_id(self) -> int:
        """The id of `<|im_start|>`."""
        return self._chatml(IM_START)

    @property
    def im_end_id(self) -> int:
        """The id of `<|im_end|>`."""
        return self._chatml(IM_END)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without any special id.

        Raises DataError when it holds a lone surrogate or a character that no pieces can write.
        """
        refuse_surrogates(text)
        if self._absent and (found := self._absent.search(text.encode())):
            place = len(text.encode()[: found.start()].decode("utf-8", errors="ignore"))
            raise DataError(
                f"the tokenizer has no piece for {text[place]!r} at character {place} of the text: remove it"
            )
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special ids give nothing, bytes that are not UTF-8 the replacement character."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The UTF-8 bytes of one id (perhaps a part of a character); empty for an id that stands for no text.

        A model may have more ids than its tokenizer, to fill a round number.
        """
        return self._bytes[id] if id < self.vocab_size else b""

    def _parsed(self, content: bytes) -> dict:
        return parse(content)

    def _piece_bytes(self, piece: str) -> bytes:
        characters = byte_characters()
        if all(character in characters for character in piece):
            return bytes(characters[character] for character in piece)
        return piece.encode("utf-8", errors="replace")

    def _chatml(self, piece: str) -> int:
        if piece not in self.specials:
            raise DataError(
                f"the tokenizer has no {piece}, so the model can't chat: import one that was taught ChatML"
            )
        return self.specials[piece]


def from_vocab_and_merges(vocab: dict, merges: Path) -> ByteLevelTokenizer:
    """GPT-2's tokenizer, as `vocab.json` and `merges.txt`.

    Raises DataError as `ByteLevelTokenizer.from_pieces`, and when the ids have gaps.
    """
    pieces = sorted(vocab, key=lambda piece: vocab[piece] if type(vocab[piece]) is int else -1)
    if [vocab[piece] for piece in pieces] != list(range(len(pieces))):
        raise DataError(f"the ids in vocab.json beside {merges} are not those from 0 to {len(pieces) - 1}")
    kinds = [CONTROL if piece in ALWAYS_SPECIAL else 1 for piece in pieces]
    return ByteLevelTokenizer.from_pieces(pieces, kinds, merge_pairs(merges), "gpt-2")


@cache
def byte_characters() -> dict[str, int]:
    """The 256 characters that stand for bytes in byte-level pieces (GPT-2's `bytes_to_unicode`)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


def _backend(description: dict, vocab: dict[str, int], specials: dict[str, int], plain: set[str]):
    """The library's tokenizer, in which no special piece can be reached.

    A special piece is called by a name with a space, of which a text that has been cut has none: neither it
    nor a merge of its pieces can spell it.
    """
    import tokenizers

    hidden = {piece: f" {id}" for piece, id in specials.items()}
    entry = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    model = description["model"] | {"vocab": {hidden.get(piece, piece): id for piece, id in vocab.items()}}
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = hidden.get(model["unk_token"], model["unk_token"])
    body = {
        "version": "1.0",
        "added_tokens": [entry | {"id": vocab[piece], "content": piece} for piece in plain],
        "normalizer": description.get("normalizer"),
        "pre_tokenizer": description.get("pre_tokenizer"),
        "model": model,
    }
    body["added_tokens"].sort(key=lambda entry: entry["id"])
    body |= dict.fromkeys(("truncation", "padding", "post_processor", "decoder"))
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(body))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"this tokenizer.json cannot be used: {error}") from error
    for piece in plain:
        if backend.token_to_id(piece) != vocab[piece]:
            raise DataError(f"the added piece {piece!r} does not keep its id {vocab[piece]}")
    return backend
