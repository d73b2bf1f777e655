"""What PPO reads: prompts, and the rows of PPO-ptx."""

import jax

from gptjax.data.chat import Messages, render_prompt
from gptjax.data.mixture import Mixture
from gptjax.data.quality import BadRows, DataError
from gptjax.generation.decode import left_pad
from gptjax.stages.dialogue_rows import dialogue_rows, read_source, text_name, text_rows


def read_prompts(source: str, split: str, seed: int) -> list[Messages]:
    """Messages up to the last user turn of every dialogue of a source and split."""
    return [messages[:-1] for messages in read_source(source, split, BadRows(), seed)]


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


def ptx_rows(config, tokenizer):
    """`batch_at(update)`: rows for the language-model gradient, of pretraining text and of dialogues."""
    layout = {"tokenizer": tokenizer, "length": config.ptx_length}
    rows = text_rows(config.corpora, **layout) | dialogue_rows(
        config.dialogues, "train", stage="ppo", seed=config.seed, rewordings=config.rewordings, **layout
    )
    weights = {text_name(source): weight for source, weight in config.corpora.items()} | config.dialogues
    mixture = Mixture(rows, weights, config.ptx_rows, config.seed)
    return lambda number: mixture.batch_at(number, jax.process_index(), jax.process_count())
