"""What a checkpoint must hold: sealed facts beside it, and what is found wrong with them.

`integrity.json` lies in the checkpoint's folder and becomes visible together with it. It names every leaf
with its shape, dtype and digest, and every file with its size; of small files also the sha256. What is in the
large ones is checked by the digests, after it has been read.
"""

import hashlib
import json
import os
from pathlib import Path

import jax

from gptjax.config import ConfigError
from gptjax.errors import DATA, UserError
from gptjax.training.digest import leaf_digests, leaf_name

FILE = "integrity.json"
HASHED_BYTES = 1 << 20
# Orbax writes these when it commits, after the list is made. Nothing that is restored depends on their text.
AT_COMMIT = {"_CHECKPOINT_METADATA", "commit_success.txt"}


class DamagedCheckpoint(UserError):
    """What a checkpoint holds is not what was saved."""

    exit_code = DATA


def file_hash(path: Path) -> str:
    """sha256 of a file in hexadecimal; "" where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def leaf_facts(tree, digests: dict[str, int]) -> dict[str, list]:
    """Name -> [shape, dtype, digest] of every leaf."""
    return {
        (name := leaf_name(path)): [list(leaf.shape), str(leaf.dtype), digests[name]]
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def write_facts(folder: Path, facts: dict) -> None:
    """Seals the facts and the list of the files that lie in the folder of a checkpoint, all on the disk."""
    facts = facts | {"files": {name: _describe(folder / name) for name in _files(folder)}}
    (folder / FILE).write_text(json.dumps({"facts": facts, "sha256": _seal(facts)}), "utf-8")
    to_disk(*folder.rglob("*"), folder)


def to_disk(*paths: Path) -> None:
    """Returns when the contents of files, and the names in folders, would outlast a power cut."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_facts(folder: Path) -> dict:
    """The facts of a checkpoint whose files are all there, with the sizes and the small ones' sha256 listed.

    Raises:
        DamagedCheckpoint: naming the first file that is not as it was.
    """
    try:
        stored = json.loads((folder / FILE).read_text("utf-8"))
        facts, seal = stored["facts"], stored["sha256"]
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{FILE} is missing, or an older gptjax wrote the checkpoint") from None
    except (ValueError, KeyError, TypeError):
        raise DamagedCheckpoint(f"{FILE} cannot be read") from None
    if _seal(facts) != seal:
        raise DamagedCheckpoint(f"{FILE} is not as it was written")
    here = _files(folder)
    for name, listed in facts["files"].items():
        if name not in here:
            raise DamagedCheckpoint(f"{name} is missing")
        if _describe(folder / name, hashed=listed[1] is not None) != listed:
            raise DamagedCheckpoint(f"{name} is not as it was written")
    _check_metadata(folder)
    return facts


def check_identity(stored: dict[str, str], expected: dict[str, str], place: Path) -> None:
    """Refuse a checkpoint made with another tokenizer or from another base.

    Raises:
        ConfigError: naming the first fact that differs.
    """
    for name, value in expected.items():
        if stored.get(name) != value:
            raise ConfigError(
                f"the checkpoint {place} was written with {name} {str(stored.get(name))[:16]}..., but this "
                f"run has {value[:16]}...: use the one it was trained with, or start under another --name"
            )


def check_digests(facts: dict, state, place: Path) -> None:
    """Raises DamagedCheckpoint, naming a leaf, where a restored state has other bits than the saved one."""
    found = leaf_digests(state)
    wrong = [name for name, (_, _, digest) in facts["leaves"].items() if found.get(name) != digest]
    if wrong:
        raise DamagedCheckpoint(
            f"the checkpoint {place} is damaged: {len(wrong)} arrays have other bits than were saved, first "
            f"{wrong[0]}"
        )


def check_leaves(leaves: dict[str, list], like, place: Path) -> None:
    """Refuse a whole checkpoint of another model or optimiser.

    Raises:
        ConfigError: naming the first leaf that differs.
    """
    expected = {
        leaf_name(path): [list(leaf.shape), str(leaf.dtype)]
        for path, leaf in jax.tree_util.tree_leaves_with_path(like)
    }
    for name in dict.fromkeys([*expected, *leaves]):
        wanted, found = expected.get(name), leaves.get(name, [])[:2] or None
        if wanted != found:
            raise ConfigError(
                f"the checkpoint {place} does not fit: {name} is {_in_words(found)} in it and "
                f"{_in_words(wanted)} in this run: use the version of gptjax that wrote it, or start under "
                "another --name"
            )


def _in_words(leaf: list | None) -> str:
    return f"{leaf[1]}{leaf[0]}" if leaf else "absent"


def _files(folder: Path) -> list[str]:
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name not in AT_COMMIT and name != FILE)


def _describe(path: Path, hashed: bool | None = None) -> list:
    size = path.stat().st_size
    hashed = size <= HASHED_BYTES if hashed is None else hashed
    return [size, file_hash(path) if hashed else None]


def _seal(facts: dict) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _check_metadata(folder: Path) -> None:
    for name in sorted(AT_COMMIT):
        if not (folder / name).exists() or not (folder / name).stat().st_size:
            raise DamagedCheckpoint(f"{name} is missing or empty")
    try:
        json.loads((folder / "_CHECKPOINT_METADATA").read_text("utf-8"))
    except ValueError:
        raise DamagedCheckpoint("_CHECKPOINT_METADATA cannot be read") from None
