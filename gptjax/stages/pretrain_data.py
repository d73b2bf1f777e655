"""What pretraining reads: its tokenizer, its rows of tokens, and a little held-out text to glance at."""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from gptjax.data.code_tokens import add_code_tokens, with_infilling
from gptjax.data.corpora import Document
from gptjax.data.packing import pack_documents
from gptjax.evaluation.perplexity import first_bytes, heldout_rows
from gptjax.stages.handover import TrainedModel
from gptjax.stages.tokenizer import read_tokenizer, run_tokenizer


def make_tokenizer(config, folder: Path, documents: dict[str, list[Document]], base: TrainedModel | None):
    """The run's tokenizer: the base's or the configured one, with tokens for code if asked.

    Raises:
        ConfigError: it has another number of ids than the model.
    """
    named, note = (base.tokenizer, f"of {config.base}") if base else (config.tokenizer, "")
    if config.code_tokens:
        named = add_code_tokens(base.tokenizer if base else read_tokenizer(config.tokenizer))
        note = f"{config.base or config.tokenizer} with code_tokens"
    texts = weighted_texts(documents, config.corpora)
    return run_tokenizer(folder, texts, config.model.vocab_size, named, note)


def weighted_texts(documents: dict[str, list[Document]], weights: dict[str, float]) -> Iterator[str]:
    """The texts of each source, repeated so that the tokenizer meets the sources about as the model will."""
    density = {
        name: weights[name] / max(1, sum(len(d.text) for d in texts)) for name, texts in documents.items()
    }
    for name, texts in documents.items():
        for _ in range(round(density[name] / min(density.values()))):
            yield from (d.text for d in texts)


def encode_document(text: str, tokenizer, infilling: float, rng: np.random.Generator) -> list[int]:
    """The ids of a document; rearranged with probability `infilling`, half of these with the suffix first."""
    if rng.random() < infilling:
        return with_infilling(text, tokenizer, rng, suffix_first=bool(rng.integers(2)))
    return tokenizer.encode(text)


def token_rows(config, documents: dict[str, list[Document]], tokenizer, folder: Path):
    """One memory-mapped int32 array `[rows, length + 1]` per source, written once per run."""
    rows = {}
    for index, (source, texts) in enumerate(documents.items()):
        file = folder / "tokens" / f"{index}.npy"
        if not file.exists():
            rng = np.random.default_rng([config.seed, index])
            ids = [encode_document(d.text, tokenizer, config.infilling, rng) for d in texts]
            packed, dropped = pack_documents(ids, config.length + 1, tokenizer.end_of_text_id)
            print(f"pretrain: {source}: {packed.size:,} tokens, {dropped} in the last partial row left out")
            file.parent.mkdir(exist_ok=True)
            # Each process writes its own, and all are equal.
            partial = file.with_suffix(f".{jax.process_index()}.partial")
            with partial.open("wb") as out:
                np.save(out, packed)
            partial.rename(file)
        rows[source] = np.load(file, mmap_mode="r")
    return rows


def glance_rows(heldout: dict[str, list[Document]], tokenizer, config):
    """A batch of rows of each source's held-out text, for the curves."""
    limit = 3 * config.batch_size * config.length
    return {
        name: heldout_rows(first_bytes([d.text for d in documents], limit), tokenizer, config.length)
        for name, documents in heldout.items()
    }
