"""A small vocabulary of WordPiece: special pieces, characters, and a few longer pieces."""

from gptjax.data.wordpiece import SPECIALS

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCAB = [
    *SPECIALS,
    *LETTERS,
    *(f"##{letter}" for letter in LETTERS + "0123456789"),
    *"0123456789.,;:!?'()[]-Bé漢",
    *("un", "an", "ban", "the", "##aff", "##able", "##ing", "##er", "##ed", "of", "and", "to", "in"),
]


def write_vocab(folder):
    """Writes `vocab.txt`; returns its path."""
    path = folder / "vocab.txt"
    path.write_text("".join(f"{piece}\n" for piece in VOCAB), "utf-8")
    return path
