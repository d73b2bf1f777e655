"""What PPO reads: prompts, and the text rows of PPO-ptx."""

import jax

from gptjax.data.chat import Messages, read_dialogues, render_prompt
from gptjax.data.corpora import read_documents
from gptjax.data.mixture import Mixture
from gptjax.data.packing import lm_batch, pack_documents
from gptjax.data.quality import BadRows, DataError
from gptjax.data.ratings import demonstrations, load_ratings, split_ratings
from gptjax.generation.decode import left_pad
from gptjax.stages.language_loss import PLAIN, select


def read_prompts(source: str, split: str, seed: int) -> list[Messages]:
    """Messages up to the last user turn of every dialogue of a source and split."""
    if source == "ratings":
        train, heldout = split_ratings(load_ratings())
        dialogues = demonstrations(train if split == "train" else heldout, seed)
    else:
        dialogues = read_dialogues(source, split=split, bad_rows=BadRows())
    return [messages[:-1] for messages in dialogues]


def encode_prompts(prompts: list[Messages], tokenizer, longest: int) -> list[list[int]]:
    """ChatML ids of the prompts that fit; the others are counted and shown.

    Raises:
        DataError: no prompt fits.
    """
    encoded = [render_prompt(messages, tokenizer) for messages in prompts]
    kept = [ids for ids in encoded if len(ids) <= longest]
    if not kept:
        raise DataError(
            f"none of {len(prompts)} prompts fits into prompt_length = {longest} tokens: raise it"
        )
    left_out = len(encoded) - len(kept)
    print(f"ppo: {len(kept)} prompts, {left_out} longer than {longest} tokens left out", flush=True)
    return kept


def prompt_rows(prompts: list[Messages], tokenizer, config):
    """`batch_at(iteration)`: left-padded prompts, "tokens" int32 `[B, P]` and "mask" bool `[B, P]`."""
    encoded = encode_prompts(prompts, tokenizer, config.prompt_length)
    tokens, mask = left_pad(encoded, tokenizer.pad_id, config.prompt_length)
    source = {"prompts": {"tokens": tokens, "mask": mask}}
    mixture = Mixture(source, {"prompts": 1.0}, config.batch_size, config.seed)
    return lambda number: mixture.batch_at(number, jax.process_index(), jax.process_count())


def text_rows(config, tokenizer):
    """`batch_at(update)`: rows of pretraining text for the language-model gradient."""
    rows = {}
    for name in config.corpora:
        ids = [tokenizer.encode(d.text) for d in read_documents(name, split="train")]
        rows[name] = pack_documents(ids, config.ptx_length + 1, tokenizer.end_of_text_id)[0]
    mixture = Mixture(rows, config.corpora, config.ptx_rows, config.seed)

    def batch_at(number):
        rows = mixture.batch_at(number, jax.process_index(), jax.process_count())
        return select(lm_batch(rows), PLAIN)

    return batch_at
