"""Rankings for the reward model and for the losses of preference: read, encoded, put in order, packed.

`config` is that of either stage.
"""

import json
from collections.abc import Callable

import numpy as np

from gptjax.data.files import bucket
from gptjax.data.preferences import (
    RankedArrays,
    RankedReplies,
    encode_ranked,
    pack_ranked,
    read_preferences,
    split_preferences,
)
from gptjax.data.quality import BadRows, DataError
from gptjax.data.ratings import load_ratings, ranked_replies, split_ratings
from gptjax.data.tokenizers import Tokenizer
from gptjax.sharding.mesh import MeshConfig, to_host


def check_sizes(config) -> None:
    """Refuses sizes of rankings that no prompt can have."""
    if not 2 <= config.k_min <= config.k_max:
        raise ValueError(
            f"k_min = {config.k_min} and k_max = {config.k_max} must satisfy 2 <= k_min <= k_max"
        )


def read_groups(config) -> tuple[list[RankedReplies], list[RankedReplies]]:
    """Training and held-out rankings; prints what of a file was left out.

    Half of the training data is that of half of the rated texts, or of the prompts, by a hash; what is held
    out is the same for both halves.

    Raises:
        DataError: the source can't be read, or has too few rankings to train on or to measure with.
    """
    if config.source == "ratings":
        train, heldout = split_ratings(load_ratings())
        count = max(1, config.groups * len(heldout) // len(train))
        train = [text for text in train if in_half(text.id, config.half)]
        sizes = {"k_min": config.k_min, "k_max": config.k_max}
        train_groups = ranked_replies(train, groups=config.groups, seed=config.seed, **sizes)
        heldout_groups = ranked_replies(heldout, groups=count, seed=config.seed + 1, **sizes)
    else:
        bad_rows = BadRows()
        train_groups, heldout_groups = split_preferences(read_preferences(config.source, bad_rows))
        train_groups = [group for group in train_groups if in_half(json.dumps(group.prompt), config.half)]
        print(f"{config.source}: read: {bad_rows.summary()}", flush=True)
    if len(train_groups) < config.batch_size or not heldout_groups:
        remedy = "add rankings or lower batch_size" if train_groups and heldout_groups else "add rankings"
        raise DataError(
            f"{config.source} gives {len(train_groups)} rankings to train on and {len(heldout_groups)} to "
            f"measure with, but there must be batch_size = {config.batch_size} and 1: {remedy}"
        )
    return train_groups, heldout_groups


def in_half(name: str, half: str) -> bool:
    """Whether the text or prompt of this name lies in the "first" or "second" half, or in "both"."""
    # Another hash than that of the held-out split, which would leave one half smaller.
    return half == "both" or bucket(f"half of {name}", 2) == ("first", "second").index(half)


def rows_needed(arrays: RankedArrays, index: np.ndarray, length: int, parts: int, mesh: MeshConfig) -> int:
    """Rows that every batch of `index` `[batches, batch_size]` fits in, divisible over parts and mesh.

    Raises:
        DataError: there is no batch, because completions that do not fit left too few rankings.
    """
    if not len(index):
        raise DataError(
            f"{len(arrays.tokens)} rankings are left, fewer than the {index.shape[1]} of a batch: add "
            "rankings, raise length or lower batch_size"
        )
    most = max(len(pack_ranked(arrays, i, length, None, parts)["tokens"]) for i in index)
    divisor = mesh.batch_shards * parts
    return -(-most // divisor) * divisor


def over_batches(
    program: Callable[[dict[str, np.ndarray]], np.ndarray],
    arrays: RankedArrays,
    config,
    more: dict[str, np.ndarray] | None = None,
) -> np.ndarray:
    """`program(batch)` of all prompts, a batch at a time: `[G, K, ...]`, of no meaning without a completion.

    Args:
        program: batch -> `[batch_size, K, ...]`.
        arrays: all rankings.
        config: batch size, length, mesh.
        more: arrays `[G, ...]` that join the batch.
    """
    order = np.arange(-(-len(arrays.tokens) // config.batch_size) * config.batch_size)
    index = np.minimum(order, len(arrays.tokens) - 1).reshape(-1, config.batch_size)
    # One part: with micro-batches `end_row` would count within each of them.
    rows = rows_needed(arrays, index, config.length, 1, config.mesh)
    batches = (
        pack_ranked(arrays, i, config.length, rows) | {name: array[i] for name, array in (more or {}).items()}
        for i in index
    )
    return np.concatenate([to_host(program(batch)) for batch in batches])[: len(arrays.tokens)]


def encode(groups, tokenizer: Tokenizer, config, name: str) -> RankedArrays:
    """The rankings as arrays; completions that do not fit are counted and shown."""
    bad_rows, bundled = BadRows(), config.source == "ratings"
    arrays = encode_ranked(groups, tokenizer, config.length, config.k_max, bad_rows, name, bundled)
    print(f"{name}: {bad_rows.summary()}")
    return arrays


def demonstrations(arrays: RankedArrays, config) -> np.ndarray:
    """Which completions show how a reply should be, bool `[G, K]`.

    Of the rated texts that is every one, since fine-tuning shows them all; of a file those that people put
    first of their prompt.
    """
    valid = arrays.lengths > 0
    if config.source == "ratings":
        return valid
    scores = np.where(valid, arrays.scores, -np.inf)
    return scores == scores.max(1, keepdims=True)


def epoch_order(tokens_G: np.ndarray, config) -> np.ndarray:
    """Prompts of every step, `[steps, batch_size]`; each epoch is shuffled anew, a partial batch left out.

    Every batch takes one prompt from each of `batch_size` strata of size, so that all batches hold about the
    same number of tokens and few packed rows stay empty.

    Args:
        tokens_G: tokens of all completions of each prompt.
        config: batch size, epochs, seed.
    """
    rng = np.random.default_rng(config.seed)
    steps = len(tokens_G) // config.batch_size
    epochs = []
    for _ in range(config.epochs):
        chosen = rng.permutation(len(tokens_G))[: steps * config.batch_size]
        strata = chosen[np.argsort(tokens_G[chosen], kind="stable")].reshape(config.batch_size, steps)
        epochs.append(rng.permuted(strata, axis=1).T)
    return np.concatenate(epochs)
