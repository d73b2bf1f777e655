"""What the reward model reads: rankings to train on and to measure with, and how many rows a batch takes."""

import json

import numpy as np

from gptjax.data.files import bucket
from gptjax.data.preferences import (
    RankedArrays,
    RankedReplies,
    pack_ranked,
    read_preferences,
    split_preferences,
)
from gptjax.data.quality import BadRows, DataError
from gptjax.data.ratings import load_ratings, ranked_replies, split_ratings
from gptjax.sharding.mesh import MeshConfig


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
        print(f"reward: {config.source}: read: {bad_rows.summary()}", flush=True)
    if len(train_groups) < config.batch_size or not heldout_groups:
        raise DataError(
            f"{config.source} gives {len(train_groups)} rankings to train on and {len(heldout_groups)} to "
            f"measure with, but there must be batch_size = {config.batch_size} and 1: add rankings or lower "
            "batch_size"
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
