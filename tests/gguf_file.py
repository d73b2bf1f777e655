"""Writes GGUF files, sound ones and others, without the code under test."""

import struct

import numpy as np

U32, F32, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5
CODES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14, "BF16": 30}


def string(text: str | bytes) -> bytes:
    content = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(content)) + content


def value(v) -> bytes:
    """A metadata value with the code of its kind."""
    if isinstance(v, bytes):
        return v  # as it is, for hostile files
    if isinstance(v, bool):
        return struct.pack("<I?", BOOL, v)
    if isinstance(v, int):
        return struct.pack("<II", U32, v)
    if isinstance(v, float):
        return struct.pack("<If", F32, v)
    if isinstance(v, str):
        return struct.pack("<I", STRING) + string(v)
    kind = STRING if isinstance(v[0], str) else I32
    items = b"".join(string(x) if kind == STRING else struct.pack("<i", x) for x in v)
    return struct.pack("<IIQ", ARRAY, kind, len(v)) + items


def encoded(array: np.ndarray, kind: str) -> bytes:
    """The bytes of a tensor; of quantised kinds by formulas written down from the format's description."""
    if kind == "F32":
        return array.astype("<f4").tobytes()
    if kind == "F16":
        return array.astype("<f2").tobytes()
    if kind == "BF16":
        return (array.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    if kind == "Q8_0":
        blocks = array.reshape(-1, 32)
        scale = (np.abs(blocks).max(1, keepdims=True) / 127).astype("<f2")
        codes = np.round(blocks / np.maximum(scale.astype("f4"), 1e-9)).astype("i1")
        return b"".join(s.tobytes() + c.tobytes() for s, c in zip(scale, codes, strict=True))
    import gguf

    return gguf.quantize(array.astype("f4"), gguf.GGMLQuantizationType[kind]).tobytes()


def write(path, metadata: dict, tensors: dict, kinds: dict | None = None, **changes):
    """Writes a file.

    Args:
        path: of the file.
        metadata: key -> value.
        tensors: name -> array `[rows, columns]` or `[n]`.
        kinds: name -> kind of CODES, F32 where none is given.
        **changes: `magic`, `version`, `tensor_count`, `key_count`, `offset` (added to each), `cut` (bytes
            left off), `dims` (name -> dimensions written).
    """
    kinds, dims = kinds or {}, changes.get("dims", {})
    head = changes.get("magic", b"GGUF") + struct.pack("<I", changes.get("version", 3))
    head += struct.pack("<Q", changes.get("tensor_count", len(tensors)))
    head += struct.pack("<Q", changes.get("key_count", len(metadata)))
    head += b"".join(string(key) + value(v) for key, v in metadata.items())
    body = b""
    for name, array in tensors.items():
        kind, shape = kinds.get(name, "F32"), dims.get(name, array.shape[::-1])
        head += string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += struct.pack("<IQ", CODES.get(kind, kind), len(body) + changes.get("offset", 0))
        content = encoded(array, kind) if kind in CODES else b"\0" * 64
        body += content + b"\0" * (-len(content) % 32)
    content = head + b"\0" * (-len(head) % 32) + body
    path.write_bytes(content[: len(content) - changes.get("cut", 0)])
    return path
