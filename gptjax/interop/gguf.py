"""Reading GGUF, the file format of llama.cpp: metadata, then tensors, many of them quantised.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The header is read here, every count held
against the bytes that are left, because the reader of the `gguf` package believes what a file says of itself;
blocks of quantised numbers are turned into float32 by that package.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gptjax.data.quality import DataError
from gptjax.errors import require

MAGIC, VERSIONS = b"GGUF", (2, 3)
# Kind of a value -> its numpy type.
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8"}
NUMBERS |= {12: "<f8"}
STRING, ARRAY = 8, 9
# Kind of a tensor -> its name, numbers in a block, bytes of a block.
BLOCKS = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
# Tensors are dequantised in parts of about so many numbers: little memory is needed beside the result.
PART = 2**20


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
        kind: key of BLOCKS.
        shape: rows first, as numpy has it.
        start: first byte in the file.
        size: bytes.
    """

    kind: int
    shape: tuple[int, ...]
    start: int
    size: int


class GgufFile:
    """An open GGUF file whose header has been checked.

    Attributes:
        path: the file.
        metadata: key -> number, string, numpy array, or list of strings.
        tensors: name -> `StoredTensor`.
    """

    def __init__(self, path: str | Path):
        """Reads the header. Raises DataError when the file is damaged, or not GGUF."""
        self.path = Path(path)
        with self.path.open("rb") as file:
            cursor = _Cursor(file, self.path)
            if cursor.take(4) != MAGIC:
                raise DataError(f"{path} is not a GGUF file: it does not begin with {MAGIC.decode()}")
            version = cursor.number("<u4")
            if version not in VERSIONS:
                raise DataError(f"{path} has version {version} of GGUF: 2 and 3 can be read, little-endian")
            tensor_count, key_count = cursor.number("<u8"), cursor.number("<u8")
            self.metadata: dict[str, Any] = {}
            for _ in range(cursor.checked(key_count, 13)):
                key = cursor.string()
                if key in self.metadata:
                    raise DataError(f"{path} holds the key {key!r} twice")
                self.metadata[key] = cursor.value(cursor.number("<u4"))
            self.tensors = self._read_index(cursor, tensor_count)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor in float32.

        Raises MissingPackage when it is quantised and the package `gguf` is not installed.
        """
        tensor = self.tensors[name]
        kind, per_block, block_bytes = BLOCKS[tensor.kind]
        rows = math.prod(tensor.shape[:-1])
        row_bytes = tensor.shape[-1] // per_block * block_bytes
        step = max(1, PART // tensor.shape[-1])
        out = np.empty((rows, tensor.shape[-1]), np.float32)
        with self.path.open("rb") as file:
            file.seek(tensor.start)
            for first in range(0, rows, step):
                part = out[first : first + step]
                content = file.read(len(part) * row_bytes)
                if len(content) < len(part) * row_bytes:
                    raise DataError(f"{self.path} became shorter while it was read: copy it again")
                part[:] = dequantised(content, kind, part.shape)
        return out.reshape(tensor.shape)

    def _read_index(self, cursor: "_Cursor", count: int) -> dict[str, StoredTensor]:
        found: dict[str, tuple] = {}
        for _ in range(cursor.checked(count, 32)):
            name, dimensions = cursor.string(), cursor.number("<u4")
            if name in found or not 1 <= dimensions <= 4:
                fault = "occurs twice" if name in found else f"has {dimensions} dimensions"
                raise DataError(f"{self.path}: the tensor {name!r} {fault}")
            shape = tuple(cursor.number("<u8") for _ in range(dimensions))[::-1]
            found[name] = shape, cursor.number("<u4"), cursor.number("<u8")
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise DataError(f"{self.path} has the alignment {alignment}, which is not a power of two")
        begin = -(-cursor.place // alignment) * alignment
        tensors = {name: self._placed(name, begin, *entry) for name, entry in found.items()}
        end, before = begin, ""
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
            if tensor.start < end:
                raise DataError(f"{self.path}: the tensors {before!r} and {name!r} lie over each other")
            end, before = tensor.start + tensor.size, name
        if end > cursor.size:
            raise DataError(
                f"{self.path} has {cursor.size} bytes, but its tensor {before!r} ends at {end}: copy it again"
            )
        return tensors

    def _placed(self, name, begin, shape, kind, offset) -> StoredTensor:
        if kind not in BLOCKS:
            known = ", ".join(block[0] for block in BLOCKS.values())
            raise DataError(f"{self.path}: the tensor {name!r} is of kind {kind}; known are {known}")
        kind_name, per_block, block_bytes = BLOCKS[kind]
        if 0 in shape or shape[-1] % per_block:
            raise DataError(f"{self.path}: the tensor {name!r} of {kind_name} cannot have the shape {shape}")
        return StoredTensor(kind, shape, begin + offset, math.prod(shape) // per_block * block_bytes)


class _Cursor:
    """Reads forward, never beyond the end of the file."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path, self.size, self.place = file, path, path.stat().st_size, 0

    def checked(self, count: int, least: int) -> int:
        """A count of things of at least so many bytes each, when the rest of the file can hold them."""
        if count * least > self.size - self.place:
            raise DataError(
                f"{self.path} promises {count} entries at byte {self.place} of {self.size}, more than the "
                "rest can hold: it is damaged, copy it again"
            )
        return count

    def take(self, count: int) -> bytes:
        content = self.file.read(self.checked(count, 1))
        self.place += count
        return content

    def number(self, kind: str):
        return self.numbers(kind, 1)[0].item()

    def numbers(self, kind: str, count: int) -> np.ndarray:
        return np.frombuffer(self.take(count * np.dtype(kind).itemsize), kind)

    def string(self) -> str:
        place, content = self.place, self.take(self.number("<u8"))
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}: the string at byte {place} is not UTF-8") from error

    def value(self, kind: int):
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise DataError(f"{self.path}: the value at byte {self.place} is of the unknown kind {kind}")
        item, count = self.number("<u4"), self.number("<u8")
        if item == STRING:
            return [self.string() for _ in range(self.checked(count, 8))]
        if item not in NUMBERS:
            raise DataError(f"{self.path}: the list at byte {self.place} has entries of the kind {item}")
        return self.numbers(NUMBERS[item], self.checked(count, np.dtype(NUMBERS[item]).itemsize))


def dequantised(content: bytes, kind: str, shape: tuple[int, int]) -> np.ndarray:
    """The numbers of whole rows of blocks, float32 `shape`."""
    if kind == "F32":
        return np.frombuffer(content, "<f4").reshape(shape)
    if kind == "F16":
        return np.frombuffer(content, "<f2").astype(np.float32).reshape(shape)
    if kind == "BF16":
        return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    require("gguf")
    import gguf

    rows = np.frombuffer(content, np.uint8).reshape(shape[0], -1)
    return gguf.dequantize(rows, gguf.GGMLQuantizationType[kind]).reshape(shape)
