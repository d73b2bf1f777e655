"""A run's tokenizer: stored, named or trained."""

from collections.abc import Iterable
from pathlib import Path

from gptjax.config import ConfigError
from gptjax.data.tokenizers import Tokenizer


def run_tokenizer(folder: Path, texts: Iterable[str], vocab_size: int, named: str | None) -> Tokenizer:
    """The tokenizer stored in the run folder; else the named one, or one trained on `texts`, which is stored.

    Args:
        folder: of the run.
        texts: read only where one has to be trained.
        vocab_size: of the model.
        named: path of a SentencePiece model, or None.

    Raises:
        ConfigError: the stored or the named one has another number of ids than the model.
    """
    stored = folder / "tokenizer.model"
    found = stored if stored.exists() else named
    if found:
        tokenizer = Tokenizer.load(found)
        if tokenizer.vocab_size != vocab_size:
            raise ConfigError(
                f"the tokenizer {found} has {tokenizer.vocab_size} ids, but model.vocab_size = "
                f"{vocab_size}: set model.vocab_size to {tokenizer.vocab_size}, or name another tokenizer"
            )
        if found == stored:
            return tokenizer
    else:
        tokenizer = Tokenizer.train(texts, vocab_size)
    # Renamed when whole: a kill while it is written must not leave half a tokenizer behind.
    partial = stored.with_suffix(".partial")
    tokenizer.save(partial)
    partial.rename(stored)
    return tokenizer
