"""GPT-1's tokenizer (Radford et al. 2018, section 4.1): pairs are merged inside words, whose end is marked.

The pieces come with a model: from `tokenizer.json`, or from `vocab.json` and `merges.txt`. The library
`tokenizers` lowers, cuts and merges; what is special is decided here.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from gptjax.data.byte_level import END_OF_TEXT, PADDING
from gptjax.data.quality import DataError
from gptjax.data.tokenizer_json import check_merges, checked_vocab, merge_pairs, parse_bpe, read_bounded
from gptjax.data.tokenizers import refuse_surrogates
from gptjax.errors import require

UNKNOWN = "<unk>"
END_OF_WORD = "</w>"
# What the published tokenizer does before it merges.
STEPS = {
    "normalizer": {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
}


class WordBpeTokenizer:
    """GPT-1's pieces with the interface of `data.tokenizers.Tokenizer`; spaces and case are lost.

    Text can never produce a special id but <unk>, which stands for a character that has no piece.

    Attributes:
        vocab_size: one more than the highest id.
        hash: sha256 of the file, in hexadecimal; two tokenizers with one hash are the same.
        specials: piece -> id.
        unknown_id: of "<unk>".
        pad_id: of a piece for padding, or of "<unk>".
        file_name: what the file, a `tokenizer.json`, is called in a run folder.
        chatml: it has no pieces that frame messages.
        bos_id: nor one before a text.
    """

    file_name = "word_bpe.json"
    chatml = False
    bos_id = None

    def __init__(self, content: bytes):
        """Args:
        content: a `tokenizer.json`.

        Raises DataError for anything but a BPE of GPT-1's kind; MissingPackage without `tokenizers`.
        """
        require("tokenizers")
        self.content = content
        self.hash = hashlib.sha256(content).hexdigest()
        description = parse_bpe(content)
        for part, step in STEPS.items():
            found = description.get(part)
            if not isinstance(found, dict) or found.get("type") != step["type"]:
                raise DataError(f"the {part} of this tokenizer.json is {found!r}, not GPT-1's {step['type']}")
        vocab, added = checked_vocab(description)
        known = {UNKNOWN, *END_OF_TEXT, *PADDING}
        self.specials = {piece: id for piece, id in vocab.items() if piece in known or piece in added}
        if description["model"].get("unk_token") != UNKNOWN or UNKNOWN not in vocab:
            raise DataError(f"a tokenizer of GPT-1's kind has the piece {UNKNOWN} for unknown characters")
        check_merges(description, set(vocab) - set(self.specials), END_OF_WORD)
        self.vocab_size = max(vocab.values()) + 1
        self.unknown_id = vocab[UNKNOWN]
        self.pad_id = next((self.specials[p] for p in PADDING if p in self.specials), self.unknown_id)
        self._texts = [""] * self.vocab_size
        for piece, id in vocab.items():
            if piece not in self.specials:
                self._texts[id] = piece.removesuffix(END_OF_WORD) + " " * piece.endswith(END_OF_WORD)
        self._backend = _backend(description, vocab, set(self.specials))

    @classmethod
    def from_vocab_and_merges(cls, vocab: dict, merges: Path) -> "WordBpeTokenizer":
        """The tokenizer as `vocab.json` and `merges.txt`; errors as the constructor's."""
        model = {"type": "BPE", "unk_token": UNKNOWN, "end_of_word_suffix": END_OF_WORD}
        model |= {"vocab": vocab, "merges": merge_pairs(merges)}
        return cls(json.dumps({"version": "1.0", "added_tokens": [], **STEPS, "model": model}).encode())

    @classmethod
    def load(cls, path: str | Path) -> "WordBpeTokenizer":
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
    def end_of_text_id(self) -> int:
        """Of the piece for the end of a text, which the published tokenizer does not have.

        Raises DataError where there is none.
        """
        found = [self.specials[piece] for piece in END_OF_TEXT if piece in self.specials]
        if not found:
            raise DataError(
                "the tokenizer of GPT-1 has no piece for the end of a text: pack and decode without one"
            )
        return found[0]

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. Raises DataError when it holds a lone surrogate."""
        refuse_surrogates(text)
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The words of `ids` with a space between any two; special ids give nothing."""
        return "".join(self._texts[id] for id in ids if id < self.vocab_size).removesuffix(" ")

    def token_bytes(self, id: int) -> bytes:
        """The UTF-8 bytes of one id, a space after them where a word ends; empty for an id without text."""
        return self._texts[id].encode() if id < self.vocab_size else b""

    def piece(self, id: int) -> str:
        """How a special id is written."""
        return next(piece for piece, special in self.specials.items() if special == id)


def marks_words(content: bytes) -> bool:
    """Whether a `tokenizer.json` marks the end of words, as GPT-1's does."""
    try:
        return bool(json.loads(content)["model"]["end_of_word_suffix"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _backend(description: dict, vocab: dict[str, int], specials: set[str]):
    """The library's tokenizer, in which special pieces are called by names with a space, as no word is."""
    import tokenizers

    names = {f" {piece}" if piece in specials else piece: id for piece, id in vocab.items()}
    model = description["model"] | {"vocab": names, "unk_token": f" {UNKNOWN}"}
    body = {part: description[part] for part in STEPS} | {"version": "1.0", "added_tokens": []}
    body |= dict.fromkeys(("truncation", "padding", "post_processor", "decoder")) | {"model": model}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(body))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"this tokenizer.json cannot be used: {error}") from error
