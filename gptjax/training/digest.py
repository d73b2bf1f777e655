"""Numbers that say whether two trees of arrays, or two leaves, have the same bits."""

import zlib

import jax
import jax.numpy as jnp

_GOLDEN = 0x9E3779B1  # 2^32 divided by the golden ratio, odd: multiples of it are far apart
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


@jax.jit
def digest(tree) -> jax.Array:
    """`sum over leaves and elements of mix(bits + place + name) mod 2^32`.

    Integer sums wrap, so the order of summing and the layout on devices do not matter. Another bit, place or
    name gives another number but for a chance of 2^-32. It proves nothing against intent.

    Args:
        tree: arrays of up to 4 bytes an element; 0.0 and -0.0 are different.

    Returns:
        uint32 scalar.

    Source: the mixing is MurmurHash3's 32-bit finaliser (Appleby 2011).

    Example:
        >>> import jax.numpy as jnp
        >>> one, other = digest({"a": jnp.array([1.0, 2.0])}), digest({"a": jnp.array([2.0, 1.0])})
        >>> bool(one == digest({"a": jnp.array([1.0, 2.0])})), bool(one == other)
        (True, False)
    """
    total = jnp.uint32(0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = zlib.crc32(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        total += _mixed(_bits(leaf) + _places(leaf.shape) + jnp.uint32(name)).sum(dtype=jnp.uint32)
    return total


def leaf_name(path) -> str:
    """The keys on the way to a leaf, such as "params/decoder/embedding", of whatever nodes they are."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def leaf_digests(tree) -> dict[str, int]:
    """Name of each leaf -> `sum over elements of mix(bits + place) mod 2^32`.

    Equal however the leaves lie on devices or processes. One flipped bit always changes a sum, because mix is
    a bijection; any other change does but for a chance of 2^-32. There is one small program for each shape.
    """
    # One leaf at a time: a CPU takes 32 programs ahead for each of its devices. When more wait, those that
    # have a thread can wait in a reduction for those that have none, for ever.
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {leaf_name(path): int(_leaf_digest(leaf)) for path, leaf in leaves}


@jax.jit
def _leaf_digest(leaf) -> jax.Array:
    return _mixed(_bits(leaf) + _places(leaf.shape)).sum(dtype=jnp.uint32)


def _bits(leaf) -> jax.Array:
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, _WORDS[leaf.dtype.itemsize]).astype(jnp.uint32)


def _places(shape) -> jax.Array:
    """A word for every place, made without a reshape, which would gather what lies on several devices."""
    words, factor = jnp.zeros(shape, jnp.uint32), _GOLDEN
    for axis in range(len(shape)):
        words += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(factor)
        factor = factor * _GOLDEN % 2**32
    return words


def _mixed(words):
    words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
    return words ^ (words >> 16)
