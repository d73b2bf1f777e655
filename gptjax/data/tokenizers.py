"""SentencePiece, made lossless: `decode(encode(text)) == text` for every text."""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import sentencepiece

from gptjax.data.quality import DataError

# SentencePiece writes a space as this character, so the character itself has to be spelt out in bytes.
SPACE_MARK = "\u2581"
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Further ones, of a tokenizer trained for BERT.
BERT_SPECIALS = ("[CLS]", "[SEP]", "[MASK]")
CHUNK = 2000


def refuse_surrogates(text: str) -> None:
    """Raises DataError, with the position, when `text` holds a lone surrogate, which has no UTF-8 form."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text holds a lone surrogate at character {error.start}, which no UTF-8 file can: remove it"
        ) from error


def text_start_id(tokenizer) -> int:
    """What stands before a text: the piece that begins texts, where there is none the one that ends them."""
    return tokenizer.end_of_text_id if tokenizer.bos_id is None else tokenizer.bos_id


def encode_on(tokenizer, text: str) -> list[int]:
    """The ids of a text that follows another: without the space that some tokenizers put before a text."""
    return tokenizer.encode_on(text) if getattr(tokenizer, "prefix", False) else tokenizer.encode(text)


def encode_after_special(tokenizer, text: str) -> list[int]:
    """The ids of a text that follows a special piece, before which most of these put their space again."""
    return encode_on(tokenizer, text) if getattr(tokenizer, "prefix_once", False) else tokenizer.encode(text)


def training_chunks(texts: Iterable[str]) -> Iterator[str]:
    """Cuts texts into chunks of at most CHUNK characters, after a newline where there is one.

    SentencePiece drops a sentence longer than its limit without a word; no chunk comes near that limit.
    """
    for text in texts:
        refuse_surrogates(text)
        start = 0
        while start < len(text):
            end = min(start + CHUNK, len(text))
            newline = text.rfind("\n", start, end)
            if end < len(text) and newline > start:
                end = newline + 1
            yield text[start:end]
            start = end


class Tokenizer:
    """A byte-pair encoding with byte fallback (Sennrich et al. 2016; Kudo and Richardson 2018).

    Ids: padding 0, unknown 1 (never produced), `<|endoftext|>`, `<|im_start|>`, `<|im_end|>`, 256 bytes,
    then the learnt pieces. Text can never produce a special id: typing "<|im_end|>" gives ordinary pieces.

    Attributes:
        vocab_size: number of ids.
        hash: sha256 of the model, in hexadecimal; two tokenizers with one hash are the same.
        pad_id, end_of_text_id, im_start_id, im_end_id: the special ids, all different.
        file_name: what the file is called in a run folder.
        chatml: whether it has the pieces that frame messages.
        bos_id: there is no piece before a text.
    """

    pad_id = 0
    file_name = "tokenizer.model"
    chatml = True
    bos_id = None

    def __init__(self, model: bytes):
        self.model = model
        self.hash = hashlib.sha256(model).hexdigest()
        if not model:
            raise ValueError("the model is empty")
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = self._pieces.vocab_size()
        self.end_of_text_id, self.im_start_id, self.im_end_id = (
            self._pieces.piece_to_id(piece) for piece in SPECIALS
        )
        self._bytes = [self._piece_bytes(id) for id in range(self.vocab_size)]
        self._space_mark_ids = [self._pieces.piece_to_id(f"<0x{b:02X}>") for b in SPACE_MARK.encode()]

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int = 4096, more_specials: Sequence[str] = ()
    ) -> "Tokenizer":
        """Learns `vocab_size` ids from `texts`; the same texts give the same bits.

        `more_specials`, such as BERT_SPECIALS, are special as SPECIALS are and come after them.

        Raises DataError when the texts are too few for so many pieces, or hold a lone surrogate.
        """
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(chunk.replace(SPACE_MARK, "") for chunk in training_chunks(texts)),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                byte_fallback=True,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                split_digits=True,
                control_symbols=[*SPECIALS, *more_specials],
                pad_id=cls.pad_id,
                unk_id=1,
                bos_id=-1,
                eos_id=-1,
                max_sentence_length=8 * CHUNK,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            raise DataError(f"no tokenizer of {vocab_size} pieces comes of this text: {error}") from error
        return cls(model.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads a tokenizer that `save` wrote.

        Raises DataError when the file is missing or something else.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"there is no tokenizer at {path}: train one or name another file")
        try:
            tokenizer = cls(path.read_bytes())
        except (RuntimeError, ValueError, IndexError) as error:
            raise DataError(
                f"{path} is not a SentencePiece model: copy or train it again ({error})"
            ) from error
        specials = {tokenizer.end_of_text_id, tokenizer.im_start_id, tokenizer.im_end_id}
        if len(specials) != 3 or tokenizer._pieces.pad_id() != cls.pad_id:
            raise DataError(f"{path} lacks the special pieces {', '.join(SPECIALS)}: train it with gptjax")
        return tokenizer

    def save(self, path: str | Path) -> None:
        """Writes the model to `path`."""
        Path(path).write_bytes(self.model)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without any special id. Raises DataError when it holds a lone surrogate."""
        refuse_surrogates(text)
        first, *rest = text.split(SPACE_MARK)
        ids = self._pieces.encode(first)
        for segment in rest:
            ids += self._space_mark_ids + self._pieces.encode(segment)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special ids give nothing, bytes that are not UTF-8 the replacement character."""
        return b"".join(self._bytes[id] for id in ids).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The UTF-8 bytes of one id (perhaps a part of a character); empty for a special id."""
        return self._bytes[id]

    @property
    def cls_id(self) -> int:
        """The id of `[CLS]`, with which BERT's rows begin."""
        return self._bert("[CLS]")

    @property
    def sep_id(self) -> int:
        """The id of `[SEP]`, with which the segments of BERT's rows end."""
        return self._bert("[SEP]")

    @property
    def mask_id(self) -> int:
        """The id of `[MASK]`, which stands for a hidden token."""
        return self._bert("[MASK]")

    def piece(self, id: int) -> str:
        """How SentencePiece writes one id."""
        return self._pieces.id_to_piece(id)

    def pieces(self) -> list[tuple[str, float, str]]:
        """Of every id how it is written, its score, and its kind.

        Kinds: "normal" are merged; "user" are cut out first (`data/code_tokens.py`); "byte"; "control".
        """
        from sentencepiece.sentencepiece_model_pb2 import ModelProto

        kinds = {4: "user", 6: "byte", 2: "control", 3: "control"}
        found = ModelProto.FromString(self.model).pieces
        return [(piece.piece, piece.score, kinds.get(piece.type, "normal")) for piece in found]

    def _bert(self, piece: str) -> int:
        id = self._pieces.piece_to_id(piece)
        if not self._pieces.is_control(id):
            raise DataError(f"the tokenizer has no {piece}: use one that the pretraining of a BERT trained")
        return id

    def _piece_bytes(self, id: int) -> bytes:
        piece = self._pieces.id_to_piece(id)
        if self._pieces.is_control(id) or self._pieces.is_unknown(id):
            return b""
        if self._pieces.is_byte(id):
            return bytes([int(piece[1:-1], 16)])
        return piece.replace(SPACE_MARK, " ").encode("utf-8")
