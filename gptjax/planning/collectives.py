"""What devices exchange, read from the optimised program: kind, mesh axes, bytes, and how often.

XLA writes a loop's body once; what stands in it is multiplied with the loop's turns.
"""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)
_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_BYTES |= {"s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s64": 8, "u64": 8, "f64": 8, "c64": 8}
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind over the same axes of the mesh.

    Attributes:
        kind: one of `KINDS`.
        axes: of the mesh; () where the program does not say.
        devices: in a group.
        places: operations in the program.
        calls: with the turns of their loops.
        bytes: of what one device has in the end, over all calls; of a reduce-scatter, in the beginning.
    """

    kind: str
    axes: tuple[str, ...]
    devices: int
    places: int
    calls: int
    bytes: float

    @property
    def sent(self) -> float:
        """Bytes that a device passes on in a ring."""
        share = (self.devices - 1) / max(self.devices, 1)
        if self.kind == "collective-permute":
            return self.bytes
        return self.bytes * share * (2 if self.kind == "all-reduce" else 1)


def read_collectives(text: str, axes: dict[str, int]) -> tuple[list[Collective], int]:
    """(the collectives of an optimised program, loops around them whose turns it does not say).

    Args:
        text: as `Compiled.as_text` gives it.
        axes: name -> size of the mesh, in its order.
    """
    computations, entry = _computations(text)
    called, unknown = _calls(computations)
    turns, places, calls, sizes = _turns(called, entry), Counter(), Counter(), Counter()
    for name, lines in computations.items():
        for line in lines if turns[name] else ():
            found = _collective(line, axes)
            if found is not None:
                (kind, *place), size = found
                # A TPU's program has a sum that is cut at once as a computation of its own.
                key = "reduce-scatter" if name.startswith("all-reduce-scatter") else kind, *place
                places[key] += 1
                calls[key] += turns[name]
                sizes[key] += turns[name] * size
    found = [Collective(*key, places[key], calls[key], sizes[key]) for key in places]

    def exchanges(name):
        inside = _turns(called, name)
        return any(_collective(line, axes) for other in inside for line in computations[other])

    return sorted(found, key=lambda one: -one.bytes), sum(map(exchanges, unknown))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Name -> lines of every computation, and the name of the one that is run."""
    computations, entry, name = {}, "", None
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            head = line.removeprefix("ENTRY ")
            name = re.match(r"%?([\w.-]+)", head).group(1)
            entry = name if head != line else entry
            computations[name] = []
        elif line.startswith("}"):
            name = None
        elif name is not None:
            computations[name].append(line)
    return computations, entry


def _calls(computations: dict[str, list[str]]) -> tuple[dict[str, list[tuple[str, int]]], list[str]]:
    """(computation -> what it runs and how often, bodies of loops of unknown length, which count once)."""
    called, unknown = {name: [] for name in computations}, []
    for name, lines in computations.items():
        for line in lines:
            operation = _OPERATION.match(line)
            # The end of an asynchronous operation names again what its start has run.
            if operation is None or operation.group(3) in ("async-update", "async-done"):
                continue
            trips = 1
            if operation.group(3) == "while":
                trips = _trip_count(line, computations)
                unknown += [] if trips else re.findall(r"body=%?([\w.-]+)", line)
            called[name] += [(other, trips or 1) for other in _names(line) if other in computations]
    return called, unknown


def _turns(called: dict[str, list[tuple[str, int]]], entry: str) -> Counter:
    """How often each computation is run by the entry."""
    turns = Counter()

    def run(name, times):
        turns[name] += times
        for other, trips in called[name]:
            run(other, times * trips)

    run(entry, 1)
    return turns


def _names(line: str) -> list[str]:
    listed = re.findall(
        r"(?:calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.-]+)", line
    )
    for several in re.findall(r"(?:branch_computations|called_computations|calls)=\{([^}]*)\}", line):
        listed += re.findall(r"%?([\w.-]+)", several)
    return listed


def _trip_count(line: str, computations: dict[str, list[str]]) -> int | None:
    known = re.search(r'known_trip_count"?[=:]\{"?n"?[:=]"?(\d+)', line)
    if known:
        return int(known.group(1))
    # The condition compares a counter from 0 with a constant.
    condition = re.search(r"condition=%?([\w.-]+)", line)
    body = "\n".join(computations.get(condition.group(1), ())) if condition else ""
    limits = re.findall(r"= s32\[\]\S* constant\((\d+)\)", body)
    return int(limits[0]) if len(limits) == 1 and "direction=LT" in body else None


def _collective(line: str, axes: dict[str, int]) -> tuple[tuple, float] | None:
    """((kind, axes, devices in a group), bytes) of a line; None of any other operation."""
    operation = _OPERATION.match(line)
    if operation is None:
        return None
    _, made, name, rest = operation.groups()
    kind = name.removesuffix("-start")
    if kind not in KINDS:
        return None
    shapes = [_size(*shape) for shape in _SHAPE.findall(made)]
    if name == "all-gather-start":  # operands and results
        shapes = shapes[len(shapes) // 2 :]
    elif name == "collective-permute-start":  # operand, result, contexts
        shapes = shapes[1:2]
    groups = _groups(rest, axes)
    devices = groups.shape[1] if groups.size else int(np.prod(list(axes.values())))
    if name == "reduce-scatter-start":
        size = sum(shapes[: len(shapes) // 2])
    else:
        size = sum(shapes) * (devices if kind == "reduce-scatter" else 1)
    return (kind, _axes_of(groups, axes), devices), size


def _size(kind: str, dimensions: str) -> float:
    return _BYTES.get(kind, 4) * float(np.prod([int(n) for n in dimensions.split(",") if n], initial=1))


def _groups(rest: str, axes: dict[str, int]) -> np.ndarray:
    """Device numbers of every group, `[groups, devices]`; of a permutation, pairs. No groups means all."""
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", rest)
    if listed:
        groups = [
            [int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed.group(1))
        ]
        return np.array([group for group in groups if len(group) == len(groups[0])])
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if not iota:
        return _groups_by_name(rest, int(np.prod(list(axes.values()))))
    shape, dimensions = (tuple(map(int, iota.group(i).split(","))) for i in (1, 2))
    ids = np.arange(np.prod(dimensions)).reshape(dimensions)
    if iota.group(3):
        ids = ids.transpose(tuple(map(int, iota.group(3).split(","))))
    return ids.reshape(shape)


def _groups_by_name(rest: str, total: int) -> np.ndarray:
    """The groups of `mesh['a'=64,'b'=8], device_ids=([8,64]T(1,0)) {'a','b':(2)4}`, XLA's own names of axes.

    `'b':(2)4` is the part of b, 4 long, within which others are numbered 2 long before it.
    """
    named = re.search(r"replica_groups=mesh\[([^]]*)\](?:, device_ids=\((.*?\)?)\))? *\{([^}]*)\}", rest)
    if not named:
        return np.arange(total)[None]
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named.group(1))}
    ids = np.arange(int(np.prod(list(sizes.values()))))
    order = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", named.group(2) or "")
    if order:
        ids = ids.reshape([int(n) for n in order.group(1).split(",")])
        ids = ids.transpose([int(n) for n in order.group(2).split(",")]) if order.group(2) else ids
    parts = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", named.group(3))
    inside = {name: (int(before or 1), int(size or sizes[name])) for name, before, size in parts}
    shape, chosen = [], []
    for name, size in sizes.items():
        before, part = inside.get(name, (1, 1))
        chosen += [len(shape) + 1] if name in inside else []
        shape += [before, part, size // (before * part)]
    others = [axis for axis in range(len(shape)) if axis not in chosen]
    groups = ids.reshape(shape).transpose(others + chosen)
    return groups.reshape(-1, int(np.prod([shape[axis] for axis in chosen])))


def _axes_of(groups: np.ndarray, axes: dict[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ."""
    if not groups.size or groups.max() >= np.prod(list(axes.values())):
        return ()
    places = np.unravel_index(groups, tuple(axes.values()))
    return tuple(name for name, place in zip(axes, places, strict=True) if (place != place[:, :1]).any())
