"""Safetensors files, single or sharded: reading, with every size checked, and writing, tensor by tensor.

Format: https://huggingface.co/docs/safetensors. A file is the length of a JSON header in 8 bytes, the header,
and the numbers. The package of that name is not used because it accepts a name twice, maps the whole file
into memory and needs all tensors at once to write one.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from gptjax.data.quality import DataError

LARGEST_HEADER = 100_000_000
# Kind -> bytes of a number. Those that are read are in FLOATS.
SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}
SIZES |= {"I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8}
FLOATS = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": "<u2"}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class SafetensorsFolder:
    """The tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.

    Attributes:
        path: the folder.
    """

    def __init__(self, folder: str | Path):
        """Reads the headers. Raises DataError when they, or the index, are not what they should be."""
        self.path = Path(folder)
        shards, index = [SINGLE], None
        if not (self.path / SINGLE).is_file():
            index = self._index()
            shards = sorted(set(index.values()))
        self._tensors: dict[str, tuple[Path, str, tuple[int, ...], int]] = {}
        for shard in shards:
            for name, place in read_header(self.path / shard).items():
                if name in self._tensors:
                    raise DataError(f"{self.path} holds the tensor {name!r} in two files")
                self._tensors[name] = (self.path / shard, *place)
        for name, shard in (index or {}).items():
            if name not in self._tensors or self._tensors[name][0].name != shard:
                raise DataError(
                    f"{self.path / INDEX} promises the tensor {name!r} in {shard}, which lacks it"
                )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor."""
        return {name: shape for name, (_, _, shape, _) in self._tensors.items()}

    def rename(self, names: dict[str, str]) -> None:
        """Lets tensors go by other names; those that are not in `names` are gone."""
        self._tensors = {new: self._tensors[old] for old, new in names.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor in float32. Raises DataError when its numbers are no floating-point numbers."""
        path, kind, shape, start = self._tensors[name]
        if kind not in FLOATS:
            raise DataError(f"{path}: the tensor {name!r} is of kind {kind}; known are {', '.join(FLOATS)}")
        stored = np.fromfile(path, FLOATS[kind], math.prod(shape), offset=start)
        if stored.size < math.prod(shape):
            raise DataError(f"{path} became shorter while it was read: copy it again")
        if kind == "BF16":
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(np.float32, copy=False).reshape(shape)

    def _index(self) -> dict[str, str]:
        """Tensor -> file. A file is named, never a path: what lies elsewhere is not this model's."""
        path = self.path / INDEX
        if not path.is_file():
            pickles = sorted(file.name for file in self.path.glob("*.bin"))
            because = f", and {pickles[0]} is a pickle, which can run code when it is read" if pickles else ""
            raise DataError(
                f"{self.path} holds no {SINGLE} and no {INDEX}{because}: convert it to safetensors"
            )
        content = read_json(path)
        shards = content.get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise DataError(f"{path} has no weight_map: copy it again")
        for shard in shards.values():
            if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise DataError(f"{path} names the file {shard!r}: a shard is a .safetensors file beside it")
        return shards


def read_json(path: Path) -> dict:
    """A JSON file that holds an object, each of its keys once.

    Raises:
        DataError: it is missing or something else.
    """
    try:
        if path.stat().st_size > LARGEST_HEADER:
            raise DataError(f"{path} has {path.stat().st_size} bytes, more than such a file takes")
        return _object(path.read_bytes(), path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): copy it again") from error


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Tensor -> kind, shape and first byte in the file.

    Raises:
        DataError: the header does not describe exactly the bytes of the file.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, LARGEST_HEADER):
                raise DataError(f"{path} is damaged: its header would take {length} of {size} bytes")
            header = _object(file.read(length), path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): copy it again") from error
    header.pop("__metadata__", None)
    begin, places = 8 + length, {}
    for name, entry in header.items():
        kind, shape, offsets = (_field(entry, key) for key in ("dtype", "shape", "data_offsets"))
        sound = (
            isinstance(kind, str)
            and kind in SIZES
            and _counts(shape)
            and _counts(offsets)
            and len(offsets) == 2
        )
        if not sound or offsets[1] - offsets[0] != math.prod(shape) * SIZES[kind]:
            raise DataError(f"{path}: the tensor {name!r} is {kind} {shape} at {offsets}, which cannot be")
        places[name] = kind, tuple(shape), begin + offsets[0]
    end = begin
    for name in sorted(header, key=lambda name: header[name]["data_offsets"]):
        first, last = header[name]["data_offsets"]
        if begin + first != end:
            raise DataError(f"{path}: the tensor {name!r} does not follow the one before it")
        end = begin + last
    if end != size:
        raise DataError(f"{path} has {size} bytes, but its header describes {end}: copy it again")
    return places


def write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]], tensors: Iterable) -> None:
    """Writes float32 tensors as they come, so that one is in memory at a time.

    Args:
        path: of the file, which appears when it is whole.
        shapes: name -> shape, in the order of `tensors`.
        tensors: (name, array) of each.
    """
    entries, place = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        end = place + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [place, end]}
        place = end
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with unfinished.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for (name, array), expected in zip(tensors, shapes, strict=True):
            if name != expected or array.shape != shapes[name] or array.dtype != np.float32:
                raise ValueError(f"{name} {array.shape} {array.dtype} comes where {expected} was announced")
            file.write(array.data)
    os.replace(unfinished, path)


def _object(content: bytes, path: Path) -> dict:
    def once(pairs: Iterator) -> dict:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise DataError(f"{path} has the key {next(n for n in names if names.count(n) > 1)!r} twice")
        return found

    try:
        found = json.loads(content, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is damaged: it holds no object")
    return found


def _field(entry, key):
    return entry.get(key) if isinstance(entry, dict) else None


def _counts(value) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**62 for n in value)
