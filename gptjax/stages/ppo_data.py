"""What PPO and its kin read: prompts, and the rows of PPO-ptx."""

from gptjax.data.chat import Messages, render_prompt
from gptjax.data.mixture import Mixture
from gptjax.data.quality import BadRows, DataError
from gptjax.generation.decode import left_pad
from gptjax.stages.dialogue_rows import dialogue_rows, read_line, read_source, text_name, text_rows

Prompt = tuple[Messages, list[int]]  # with its ids


def ppo_lengths(config) -> dict[str, int]:
    """Keys of a `PpoConfig` -> tokens of the longest sequences that its models read."""
    return reply_lengths(config) | ({"ptx_length": config.ptx_length} if config.corpora else {})


def reply_lengths(config) -> dict[str, int]:
    """The keys that bound a prompt with its reply -> tokens of the longest of them."""
    longest = config.prompt_length + config.sampling.max_new_tokens
    return {"prompt_length + sampling.max_new_tokens": longest}


def read_prompts(source: str, split: str, seed: int) -> list[Messages]:
    """Messages up to the last user turn of every dialogue of a source and split.

    Prints what of a file was left out. Raises DataError as `read_source` does.
    """
    bad_rows = BadRows()
    prompts = [messages[:-1] for messages, _ in read_source(source, split, bad_rows, seed)]
    print(f"prompts: {source} ({split}): {read_line(bad_rows)}{len(prompts)} dialogues", flush=True)
    return prompts


def encode_prompts(prompts: list[Messages], tokenizer, longest: int) -> list[list[int]]:
    """ChatML ids of the prompts that fit, as `fitting_prompts`."""
    return [ids for _, ids in fitting_prompts(prompts, tokenizer, longest)]


def fitting_prompts(prompts: list[Messages], tokenizer, longest: int) -> list[Prompt]:
    """The prompts that fit, with their ChatML ids; the others are counted and shown.

    Raises:
        DataError: no prompt fits.
    """
    encoded = [render_prompt(messages, tokenizer) for messages in prompts]
    return [(prompts[i], encoded[i]) for i in which_fit(encoded, longest)]


def which_fit(prompts: list[list[int]], longest: int) -> list[int]:
    """The numbers of the prompts of at most `longest` ids; the others are counted and shown.

    Raises:
        DataError: no prompt fits.
    """
    kept = [i for i, ids in enumerate(prompts) if len(ids) <= longest]
    if not kept:
        raise DataError(
            f"none of {len(prompts)} prompts fits into prompt_length = {longest} tokens: raise it"
        )
    left_out = len(prompts) - len(kept)
    print(f"prompts: {len(kept)} kept, {left_out} longer than {longest} tokens left out", flush=True)
    return kept


def prompt_widths(config) -> list[int]:
    """The widths P that prompts are padded to, the smallest first: each half of the one above it, rounded up.

    So few shapes meet the compiler, whatever the prompts' lengths are.
    """
    widths = {-(-config.prompt_length // 2**halvings) for halvings in range(config.prompt_buckets)}
    return sorted(widths)


def prompt_rows(prompts: list[Messages], tokenizer, config):
    """`batch_at(iteration)`: left-padded prompts, "tokens" int32 `[B, P]` and "mask" bool `[B, P]`.

    P is the smallest of `prompt_widths` that the batch's longest prompt fits in: a function of the batch.
    """
    encoded = encode_prompts(prompts, tokenizer, config.prompt_length)
    tokens, mask = left_pad(encoded, tokenizer.pad_id, config.prompt_length)
    source = {"prompts": {"tokens": tokens, "mask": mask}}
    mixture, widths = Mixture(source, {"prompts": 1.0}, config.batch_size, config.seed), prompt_widths(config)

    def batch_at(iteration: int):
        batch = mixture.batch_at(iteration)
        longest = batch["mask"].sum(1).max()
        width = next(width for width in widths if width >= longest)
        return {name: array[:, -width:] for name, array in batch.items()}

    return batch_at


def ptx_rows(config, tokenizer):
    """`batch_at(update)`: rows for the language-model gradient, of pretraining text and of dialogues."""
    layout = {"tokenizer": tokenizer, "length": config.ptx_length}
    rows = text_rows(config.corpora, **layout) | dialogue_rows(
        config.dialogues, "train", stage="ppo", seed=config.seed, rewordings=config.rewordings, **layout
    )
    weights = {text_name(source): weight for source, weight in config.corpora.items()} | config.dialogues
    mixture = Mixture(rows, weights, config.ptx_rows, config.seed)
    return mixture.batch_at
