"""A run's tokenizer: stored, named or trained."""

from collections.abc import Iterable
from pathlib import Path

import jax

from gptjax.config import ConfigError
from gptjax.data.byte_level import ByteLevelTokenizer
from gptjax.data.tokenizers import Tokenizer
from gptjax.stages.handover import TOKENIZERS, AnyTokenizer, load_tokenizer


def run_tokenizer(
    folder: Path,
    texts: Iterable[str],
    vocab_size: int,
    named: AnyTokenizer | str | None = None,
    note: str = "",
    more_specials: tuple[str, ...] = (),
) -> AnyTokenizer:
    """The tokenizer stored in the run folder; else the named one, or one trained on `texts`, which is stored.

    Args:
        folder: of the run.
        texts: read only where one has to be trained.
        vocab_size: of the model.
        named: a tokenizer or the path of one; None trains one.
        note: where a tokenizer that is not named by a path comes from, for messages.
        more_specials: see `Tokenizer.train`.

    Raises:
        ConfigError: the stored or the named one has another number of ids than the model.
    """
    if any((folder / kind.file_name).exists() for kind in TOKENIZERS):
        tokenizer = load_tokenizer(folder)
        return _checked(tokenizer, vocab_size, f"{folder / tokenizer.file_name}")
    if isinstance(named, str):
        tokenizer = _checked(read_tokenizer(named), vocab_size, named)
    elif named is not None:
        tokenizer = _checked(named, vocab_size, note)
    else:
        tokenizer = Tokenizer.train(texts, vocab_size, more_specials)
    # Renamed when whole: a kill while it is written must not leave half a tokenizer behind. Each process
    # writes its own, and all are equal.
    partial = folder / f"{tokenizer.file_name}.{jax.process_index()}.partial"
    tokenizer.save(partial)
    partial.rename(folder / tokenizer.file_name)
    return tokenizer


def read_tokenizer(path: str) -> AnyTokenizer:
    """The tokenizer of a file: `tokenizer.json` is byte-level, all else SentencePiece. Raises DataError."""
    return (ByteLevelTokenizer if path.endswith(".json") else Tokenizer).load(path)


def _checked(tokenizer: AnyTokenizer, vocab_size: int, source: str) -> AnyTokenizer:
    if tokenizer.vocab_size != vocab_size:
        raise ConfigError(
            f"the tokenizer {source} has {tokenizer.vocab_size} ids, but model.vocab_size = "
            f"{vocab_size}: set model.vocab_size to {tokenizer.vocab_size}, or name another tokenizer"
        )
    return tokenizer
