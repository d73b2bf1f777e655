"""WordPiece, BERT's tokenizer (Devlin et al. 2018, section 3; Wu et al. 2016, section 4.1).

The pieces come from elsewhere, with a model: from `vocab.txt` or from `tokenizer.json`. The library
`tokenizers` cleans, lowers and cuts; which ids are special, and that no text becomes one, is decided here. A
word is cut into the longest pieces from the left; one that can't be, or has over 100 characters, is [UNK].
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from gptjax.data.quality import DataError
from gptjax.data.tokenizer_json import checked_vocab
from gptjax.data.tokenizers import refuse_surrogates
from gptjax.errors import require

PAD, UNKNOWN, CLS, SEP, MASK = SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
INSIDE = "##"  # begins a piece that does not begin a word
LARGEST_FILE = 64 * 2**20


class WordPieceTokenizer:
    """BERT's pieces with the interface of `data.tokenizers.Tokenizer`; unlike its, they lose spaces and case.

    Text can never produce a special id but [UNK]: typing "[SEP]" gives the pieces of "[", "sep" and "]".

    Attributes:
        vocab_size: one more than the highest id.
        hash: sha256 of the file, in hexadecimal; two tokenizers with one hash are the same.
        specials: piece -> id.
        pad_id, unknown_id, cls_id, sep_id, mask_id: of "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]".
        end_of_text_id: of "[SEP]".
        file_name: what the file, a `tokenizer.json`, is called in a run folder.
        chatml: it has no pieces that frame messages.
        bos_id: nor one before a text; [CLS] is put there by who needs it.
    """

    file_name = "wordpiece.json"
    chatml = False
    bos_id = None

    def __init__(self, content: bytes):
        """Args:
        content: a `tokenizer.json`.

        Raises DataError for anything but BERT's WordPiece; MissingPackage without the library `tokenizers`.
        """
        require("tokenizers")
        self.content = content
        self.hash = hashlib.sha256(content).hexdigest()
        description = _parse(content)
        vocab, added = checked_vocab(description)
        lacking = [piece for piece in SPECIALS if piece not in vocab]
        plain = [piece for piece, special in added.items() if not special and piece not in SPECIALS]
        if lacking or plain:
            fault = f"lacks {', '.join(lacking)}" if lacking else f"adds ordinary pieces such as {plain[0]!r}"
            raise DataError(f"the WordPiece tokenizer {fault}: import one as BERT's were published")
        self.specials = {piece: vocab[piece] for piece in vocab if piece in SPECIALS or piece in added}
        self.vocab_size = max(vocab.values()) + 1
        self.pad_id, self.unknown_id, self.cls_id, self.sep_id, self.mask_id = map(vocab.get, SPECIALS)
        self.end_of_text_id = self.sep_id
        self._texts = [""] * self.vocab_size
        for piece, id in vocab.items():
            if piece not in self.specials:
                self._texts[id] = piece.removeprefix(INSIDE) if piece.startswith(INSIDE) else f" {piece}"
        self._backend = _backend(description, vocab, set(self.specials))

    @classmethod
    def from_vocab(
        cls, path: str | Path, *, lower_case: bool = True, strip_accents: bool | None = None
    ) -> "WordPieceTokenizer":
        """Reads a `vocab.txt`, a piece a line.

        Args:
            path: the file.
            lower_case: of uncased models; the file does not say.
            strip_accents: None strips them where case is lowered, as Google's code does.

        Raises DataError when the file is missing, names a piece twice, or lacks a special one.
        """
        lines = _read(path).decode("utf-8", errors="replace").removesuffix("\n").split("\n")
        pieces = [line.removesuffix("\r") for line in lines]
        vocab = {piece: id for id, piece in enumerate(pieces)}
        if len(vocab) != len(pieces):
            raise DataError(f"{path} lists {len(pieces) - len(vocab)} of its pieces twice")
        description = {
            "version": "1.0",
            "added_tokens": [],
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": strip_accents,
                "lowercase": lower_case,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "model": {
                "type": "WordPiece",
                "unk_token": UNKNOWN,
                "continuing_subword_prefix": INSIDE,
                "max_input_chars_per_word": 100,
                "vocab": vocab,
            },
        }
        return cls(json.dumps(description, ensure_ascii=False).encode())

    @classmethod
    def load(cls, path: str | Path) -> "WordPieceTokenizer":
        """Reads a `tokenizer.json`. Raises DataError when the file is missing or something else."""
        try:
            return cls(_read(path))
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Writes the `tokenizer.json` to `path`."""
        Path(path).write_bytes(self.content)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without [CLS] and [SEP]. Raises DataError when it holds a lone surrogate."""
        refuse_surrogates(text)
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The words of `ids` with a space between any two; special ids, [UNK] too, give nothing."""
        return "".join(self._texts[id] for id in ids).removeprefix(" ")

    def token_bytes(self, id: int) -> bytes:
        """The UTF-8 bytes of one id, after a space where it begins a word; empty where it has no text."""
        return self._texts[id].encode() if id < self.vocab_size else b""

    def piece(self, id: int) -> str:
        """How a special id is written."""
        return next(piece for piece, special in self.specials.items() if special == id)


def is_wordpiece(content: bytes) -> bool:
    """Whether a `tokenizer.json` is a WordPiece's."""
    try:
        return json.loads(content)["model"]["type"] == "WordPiece"
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _read(path: str | Path) -> bytes:
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no tokenizer at {path}: name another file")
    if path.stat().st_size > LARGEST_FILE:
        raise DataError(f"{path} has {path.stat().st_size} bytes, more than a tokenizer takes")
    return path.read_bytes()


def _parse(content: bytes) -> dict:
    """The JSON of a WordPiece of BERT's kind."""
    if not is_wordpiece(content):
        raise DataError("this is not the tokenizer.json of a WordPiece")
    description = json.loads(content)
    model = description["model"]
    for part, kind in (("normalizer", "BertNormalizer"), ("pre_tokenizer", "BertPreTokenizer")):
        found = description.get(part)
        if not isinstance(found, dict) or found.get("type") != kind:
            raise DataError(f"the {part} of this tokenizer.json is {found!r}, but a {kind} is known alone")
    if model.get("continuing_subword_prefix", INSIDE) != INSIDE or model.get("unk_token") != UNKNOWN:
        raise DataError(f"a WordPiece of BERT marks the inside of words with {INSIDE} and has {UNKNOWN}")
    return description


def _backend(description: dict, vocab: dict[str, int], specials: set[str]):
    """The library's tokenizer, in which special pieces are called by names with a space, as no word is."""
    import tokenizers

    names = {f" {piece}" if piece in specials else piece: id for piece, id in vocab.items()}
    model = description["model"] | {"vocab": names, "unk_token": f" {UNKNOWN}"}
    body = {part: description[part] for part in ("normalizer", "pre_tokenizer")}
    body |= {"version": "1.0", "added_tokens": [], "model": model}
    body |= dict.fromkeys(("truncation", "padding", "post_processor", "decoder"))
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(body))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"this tokenizer.json cannot be used: {error}") from error
