"""The root of a stage's randomness."""

import zlib

import jax


def stage_key(seed: int, stage: str) -> jax.Array:
    """A PRNG key of the stage alone: two stages under one seed share no draw.

    Args:
        seed: of the run, 0 to 2^32 - 1.
        stage: name such as "pretrain".
    """
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(stage.encode()))
