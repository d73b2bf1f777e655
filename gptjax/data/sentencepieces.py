"""Published SentencePiece models (Kudo and Richardson 2018), such as LLaMA's (Touvron et al. 2023).

The ids are those of the library, with the model's own normalisation and, where it says so, a space put before
the text; our own models, which lose nothing, are `data/tokenizers.py`.
"""

import hashlib
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import sentencepiece

from gptjax.data.byte_level import ALWAYS_SPECIAL, END_OF_TEXT, IM_END, IM_START, PADDING
from gptjax.data.quality import DataError
from gptjax.data.tokenizer_json import BYTE, CONTROL, UNKNOWN, UNUSED, read_bounded
from gptjax.data.tokenizers import SPACE_MARK, SPECIALS, Tokenizer, refuse_surrogates


class SentencePieceTokenizer:
    """A published SentencePiece model with the interface of `data.tokenizers.Tokenizer`.

    Text can never produce a special id: typing "</s>" gives ordinary pieces. The character U+2581 counts as a
    space, and what the model normalises is lost.

    Attributes:
        vocab_size: number of ids.
        hash: sha256 of the model, in hexadecimal; two tokenizers with one hash are the same.
        specials: piece -> id.
        end_of_text_id, pad_id: the latter is the former where there is no piece for padding.
        bos_id: of the piece that stands before a text, such as "<s>"; None where there is none.
        prefix: whether a space is put before the text.
        file_name: what the file is called in a run folder.
    """

    file_name = "sentencepiece.model"

    def __init__(self, model: bytes):
        """Args:
        model: a SentencePiece model.

        Raises DataError for anything else, and for a model without a piece for the end of a text.
        """
        proto = parsed(model)
        self.model = model
        self.hash = hashlib.sha256(model).hexdigest()
        self._pieces = _processor(model)
        self.vocab_size = len(proto.pieces)
        self.prefix = proto.normalizer_spec.add_dummy_prefix
        self.specials = {p.piece: id for id, p in enumerate(proto.pieces) if p.type in (CONTROL, UNKNOWN)}
        ends = [self._pieces.eos_id(), *(self.specials.get(piece, -1) for piece in END_OF_TEXT)]
        pads = [self._pieces.pad_id(), *(self.specials.get(piece, -1) for piece in PADDING)]
        self.end_of_text_id = next((id for id in ends if id >= 0), -1)
        if self.end_of_text_id < 0:
            raise DataError("the SentencePiece model has no piece for the end of a text")
        self.pad_id = next((id for id in pads if id >= 0), self.end_of_text_id)
        begins = proto.trainer_spec.bos_id >= 0 and self._pieces.bos_id() >= 0
        self.bos_id = self._pieces.bos_id() if begins else None
        self._bytes = [_piece_bytes(piece) for piece in proto.pieces]

    @classmethod
    def load(cls, path: str | Path) -> "SentencePieceTokenizer":
        """Reads a model. Raises DataError when the file is missing or something else."""
        content = read_bounded(Path(path))
        try:
            return cls(content)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Writes the model to `path`."""
        Path(path).write_bytes(self.model)

    @property
    def chatml(self) -> bool:
        """Whether it has the pieces that frame messages."""
        return IM_START in self.specials and IM_END in self.specials

    @property
    def im_start_id(self) -> int:
        """The id of `<|im_start|>`. Raises DataError where there is none."""
        return self._chatml(IM_START)

    @property
    def im_end_id(self) -> int:
        """The id of `<|im_end|>`. Raises DataError where there is none."""
        return self._chatml(IM_END)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without any special id. Raises DataError when it holds a lone surrogate."""
        refuse_surrogates(text)
        return self._pieces.encode(text)

    def encode_on(self, text: str) -> list[int]:
        """As `encode`, of a text that follows another: no space is put before it."""
        refuse_surrogates(text)
        return self._going_on.encode(text)

    @cached_property
    def _going_on(self) -> sentencepiece.SentencePieceProcessor:
        proto = parsed(self.model)
        proto.normalizer_spec.add_dummy_prefix = False
        return _processor(proto.SerializeToString())

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without the space before it; special ids give nothing."""
        content = b"".join(map(self.token_bytes, ids))
        return (content.removeprefix(b" ") if self.prefix else content).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The UTF-8 bytes of one id (perhaps a part of a character); empty for an id without text."""
        return self._bytes[id] if id < self.vocab_size else b""

    def piece(self, id: int) -> str:
        """How the model writes one id."""
        return self._pieces.id_to_piece(id)

    def _chatml(self, piece: str) -> int:
        if piece not in self.specials:
            raise DataError(
                f"the tokenizer has no {piece}, so the model can't chat: import one that was taught ChatML"
            )
        return self.specials[piece]


def parsed(model: bytes):
    """The model as a protocol buffer. Raises DataError for other bytes."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    try:
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    except DecodeError as error:
        raise DataError(f"this is not a SentencePiece model: {error}") from error
    if not proto.pieces:
        raise DataError("this is not a SentencePiece model: it has no pieces")
    return proto


def published(
    model: bytes, added: dict[str, int] | None = None, *, begins: bool = True
) -> "SentencePieceTokenizer | Tokenizer":
    """A published model as a tokenizer; ours is a `Tokenizer`.

    Args:
        model: its bytes.
        added: special pieces that follow its own -> id.
        begins: whether its piece for the beginning of a text stands before every text.

    Raises DataError for other bytes, and for ids that leave a gap.
    """
    proto = parsed(model)
    kinds = {piece.piece: piece.type for piece in proto.pieces}
    if (
        all(kinds.get(piece) == CONTROL for piece in SPECIALS)
        and _processor(model).pad_id() == Tokenizer.pad_id
    ):
        return Tokenizer(model)
    changed = not begins and _processor(model).bos_id() >= 0
    if changed:
        proto.trainer_spec.bos_id = -1
    added = added or {}
    if not all(type(id) is int for id in added.values()):
        raise DataError("the ids of the added pieces are no numbers")
    for piece, id in sorted(added.items(), key=lambda item: item[1]):
        if piece in kinds:
            continue
        if id != len(proto.pieces):
            raise DataError(f"the added piece {piece!r} has the id {id} where {len(proto.pieces)} follows")
        proto.pieces.add(piece=piece, score=0.0, type=CONTROL)
        changed = True
    for piece in proto.pieces:
        if piece.piece in ALWAYS_SPECIAL and piece.type != CONTROL:
            piece.type, changed = CONTROL, True
    return SentencePieceTokenizer(proto.SerializeToString() if changed else model)


def from_lists(
    pieces: list[str],
    scores: list[float],
    kinds: list[int],
    *,
    prefix: bool,
    end_of_text: int,
    padding: int | None = None,
    begin: int | None = None,
) -> "SentencePieceTokenizer | Tokenizer":
    """The tokenizer of the lists that GGUF holds.

    Args:
        pieces: by id.
        scores: of each; of two merges the one with the higher score is made first.
        kinds: of each, as in `data/tokenizer_json.py`; the unused ones at the end are left out.
        prefix: whether a space is put before the text.
        end_of_text, padding, begin: ids of special pieces; the last stands before a text, None for none.

    Raises DataError when they do not fit together.
    """
    from sentencepiece import sentencepiece_model_pb2

    if not len(pieces) == len(scores) == len(kinds) or len(set(pieces)) != len(pieces):
        raise DataError("the tokenizer's pieces, scores and kinds do not fit together")
    count = len(pieces)
    while count and kinds[count - 1] == UNUSED:
        count -= 1
    if not 0 <= end_of_text < count or list(kinds[:count]).count(UNKNOWN) != 1:
        raise DataError("the tokenizer lacks a piece for the end of a text, or for what is unknown")
    proto = sentencepiece_model_pb2.ModelProto()
    for piece, score, kind in zip(pieces[:count], scores, kinds, strict=False):
        if kind not in range(1, 7):
            raise DataError(f"the piece {piece!r} is of the unknown kind {kind}")
        proto.pieces.add(piece=piece, score=score, type=kind)
    spec, normalizer = proto.trainer_spec, proto.normalizer_spec
    spec.model_type, spec.vocab_size, spec.byte_fallback = 2, count, BYTE in kinds
    spec.unk_id, spec.unk_piece = kinds.index(UNKNOWN), pieces[kinds.index(UNKNOWN)]
    spec.eos_id, spec.eos_piece = end_of_text, pieces[end_of_text]
    spec.bos_id = -1
    if begin is not None:
        if not 0 <= begin < count or kinds[begin] != CONTROL:
            raise DataError(f"the tokenizer begins a text with the id {begin}, which is no control piece")
        spec.bos_id, spec.bos_piece = begin, pieces[begin]
    if padding is not None and 0 <= padding < count:
        spec.pad_id, spec.pad_piece = padding, pieces[padding]
    normalizer.name, normalizer.add_dummy_prefix = "identity", prefix
    normalizer.remove_extra_whitespaces = False
    return published(proto.SerializeToString())


def _processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, ValueError, OSError) as error:
        raise DataError(f"this SentencePiece model cannot be used: {error}") from error


def _piece_bytes(piece) -> bytes:
    if piece.type in (CONTROL, UNKNOWN, UNUSED):
        return b""
    if piece.type == BYTE:
        if not re.fullmatch("<0x[0-9A-F]{2}>", piece.piece):
            raise DataError(f"the piece {piece.piece!r} of the SentencePiece model stands for no byte")
        return bytes([int(piece.piece[1:-1], 16)])
    return piece.piece.replace(SPACE_MARK, " ").encode("utf-8")
