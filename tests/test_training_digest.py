"""The digest of a tree: what changes it, what does not, and its formula in plain integers."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.training import digest as digest_module
from gptjax.training.digest import digest, leaf_digests

TREE = {"a": jnp.arange(12, dtype=jnp.float32).reshape(3, 4) - 5, "b": {"c": jnp.array([True, False])}}


def mixed(word: int) -> int:
    word = (word ^ (word >> 16)) * 0x85EBCA6B % 2**32
    word = (word ^ (word >> 13)) * 0xC2B2AE35 % 2**32
    return word ^ (word >> 16)


def by_hand(tree) -> int:
    """One element after the other."""
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaf = np.asarray(leaf)
        name = zlib.crc32(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        words = leaf.astype(np.uint32) if leaf.dtype == bool else leaf.view(f"uint{8 * leaf.itemsize}")
        for place in np.ndindex(leaf.shape):
            offset = sum(i * pow(0x9E3779B1, axis + 1, 2**32) for axis, i in enumerate(place))
            total += mixed((int(words[place]) + offset + name) % 2**32)
    return total % 2**32


def test_it_is_the_formula():
    assert int(digest(TREE)) == by_hand(TREE)
    other = {"h": jnp.array([1.5, -2.0], jnp.bfloat16), "i": jnp.array([[-1, 7]]), "empty": jnp.zeros((0, 3))}
    assert int(digest(other)) == by_hand(other)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t | {"a": t["a"].at[1, 2].add(1e-6)},
        lambda t: t | {"a": t["a"].at[1, 1].set(-0.0)},  # it was 0.0
        lambda t: t | {"a": t["a"][::-1]},
        lambda t: t | {"a": t["a"].reshape(4, 3)},
        lambda t: t | {"a": t["a"].T.reshape(3, 4)},
        lambda t: {"b": t["b"], "d": t["a"]},
        lambda t: t | {"b": {"c": t["b"]["c"][::-1]}},
        lambda t: {"b": t["b"]},
    ],
)
def test_another_bit_place_or_name_is_another_digest(change):
    assert TREE["a"][1, 1] == 0
    assert int(digest(change(dict(TREE)))) != int(digest(TREE))


def test_the_layout_on_devices_does_not_matter():
    array = jax.random.normal(jax.random.key(0), (16, 8, 4))
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data", "tensor"))
    assert int(digest([jax.device_put(array, sharding)])) == int(digest([array]))


def test_digests_of_many_trees_are_spread():
    """As random words would be: no two of 3000 alike, and every bit set in about half of them."""
    found = np.array([int(digest({"x": jnp.float32(i)})) for i in range(3000)], np.uint32)
    assert len(set(found.tolist())) == 3000
    shares = np.array([((found >> bit) & 1).mean() for bit in range(32)])
    assert np.abs(shares - 0.5).max() < 0.05  # five standard deviations


def test_a_leaf_is_read_before_the_next_is_sent(monkeypatch):
    """A device that has more programs waiting than it takes ahead never ends them; see `leaf_digests`."""
    events = []

    class Sum:
        def __int__(self):
            events.append("read")
            return 7

    monkeypatch.setattr(digest_module, "_leaf_digest", lambda leaf: events.append("sent") or Sum())
    assert leaf_digests({"a": jnp.ones(2), "b": [jnp.ones(3), jnp.ones(4)]}) == {"a": 7, "b/0": 7, "b/1": 7}
    assert events == ["sent", "read"] * 3
