"""The devices a run is planned for: what a chip can do by its data sheet, and how many there are."""

import math
from dataclasses import dataclass

from gptjax.config import ConfigError, nearest
from gptjax.training.metrics import peak_flops_per_device

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device, from its maker's data sheet.

    Attributes:
        kind: as JAX calls it, from which its peak is known (`training/metrics.py`).
        platform: "tpu", "cuda" or "cpu".
        memory: bytes a program may use; None where it is the host's.
        bandwidth: of its memory, bytes/s.
        link: bytes/s that leave it over one link: an inter-chip link in one direction, NVLink in all.
        outside: bytes/s that leave it for another node; None where all devices are linked alike.
        torus: dimensions of the torus that a topology's sizes name; 0 for none.
    """

    kind: str
    platform: str
    memory: float | None
    bandwidth: float
    link: float
    outside: float | None = None
    torus: int = 0

    @property
    def peak(self) -> float | None:
        """Dense bfloat16 FLOP/s; None where it is not known."""
        return peak_flops_per_device(self.kind)


# Memory is what the compilers give a program, a little less than what is sold. TPU links: 45 or 90 GB/s each
# way. GPUs: NVLink 4 has 450 GB/s each way; between nodes each has an adapter of 400 Gbit/s.
CHIPS = {
    "v4": Chip("TPU v4", "tpu", 31.75 * GIB, 1.228e12, 45e9, torus=3),
    "v5e": Chip("TPU v5e", "tpu", 15.75 * GIB, 0.819e12, 45e9, torus=2),
    "v5p": Chip("TPU v5", "tpu", 95.0 * GIB, 2.765e12, 90e9, torus=3),
    "v6e": Chip("TPU v6", "tpu", 31.25 * GIB, 1.64e12, 90e9, torus=2),
    "h100": Chip("H100", "cuda", 79.1 * GIB, 3.35e12, 450e9, outside=50e9),
    "h200": Chip("H200", "cuda", 139.8 * GIB, 4.8e12, 450e9, outside=50e9),
    "cpu": Chip("cpu", "cpu", None, 1e10, 1e10),
}
NODE = 8  # GPUs that share NVLink


@dataclass(frozen=True)
class Topology:
    """Chips in their arrangement.

    Attributes:
        name: as written, such as "v5p:8x8x8", "h100x512" or "cpu:64".
        chip: one of them.
        sizes: of the torus, or their number alone.
    """

    name: str
    chip: Chip
    sizes: tuple[int, ...]

    @property
    def devices(self) -> int:
        """How many there are."""
        return math.prod(self.sizes)

    def bandwidth(self, axes: dict[str, int], used: tuple[str, ...], one_way: bool = False) -> float:
        """Bytes/s that a device passes on to its neighbours along mesh axes.

        A mesh axis lies on as many dimensions of the torus as its size is the product of, and uses their
        links; on GPUs the axes are counted from the last, and those that leave a node cross the network.

        Args:
            axes: name -> size of all mesh axes.
            used: those over which a collective runs.
            one_way: to one neighbour alone, where a ring has both directions.
        """
        if self.chip.torus and one_way:
            return self.chip.link
        if self.chip.torus:
            return 2 * self.chip.link * max(1, sum(len(_dimensions(self.sizes, axes)[axis]) for axis in used))
        names, inner = list(axes), 1
        for name in reversed(names[names.index(used[0]) :] if used else []):
            inner *= axes[name]
        beyond = self.chip.outside is not None and inner > NODE
        return self.chip.outside if beyond else self.chip.link


def parse_topology(text: str) -> Topology:
    """The topology that `v5p:8x8x8`, `v5e:16x16`, `h100x512`, `h100:512` or `cpu:64` names.

    Raises:
        ConfigError: an unknown chip, or sizes that are no numbers or too few.
    """
    name, colon, sizes = text.partition(":")
    if not colon:
        name, _, sizes = text.partition("x")
    if name not in CHIPS:
        raise ConfigError(
            f"there is no chip '{name}': the nearest is '{nearest(name, CHIPS)}' of {', '.join(CHIPS)}"
        )
    chip, parts = CHIPS[name], sizes.split("x")
    wanted = chip.torus or 1
    if len(parts) != wanted or not all(part.isdigit() and int(part) for part in parts):
        example = {3: ":8x8x8", 2: ":16x16", 1: ":64"}[wanted]
        raise ConfigError(f"the topology {text!r} does not say how many chips: write it as {name}{example}")
    return Topology(text, chip, tuple(int(part) for part in parts))


def _dimensions(sizes: tuple[int, ...], axes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Mesh axis -> the dimensions of the torus it lies on, given out as they fit, the smallest set first."""
    free, given = set(range(len(sizes))), {}
    for name, size in sorted(axes.items(), key=lambda item: item[1]):
        found = next((s for s in _subsets(sorted(free)) if math.prod(sizes[i] for i in s) == size), ())
        given[name] = found if size > 1 else ()
        free -= set(given[name])
    return given


def _subsets(items: list[int]) -> list[tuple[int, ...]]:
    every = [tuple(i for bit, i in enumerate(items) if mask >> bit & 1) for mask in range(1, 2 ** len(items))]
    return sorted(every, key=len)
