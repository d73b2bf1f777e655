"""How long a step takes at least: arithmetic, memory and links, each at its data sheet's speed."""

from dataclasses import dataclass

from gptjax.planning.collectives import Collective
from gptjax.planning.topology import Topology


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step on one device.

    Attributes:
        compute: of matrix products, with those that are computed again or in a pipeline's bubble.
        memory: of reading weights and activations and of updating the state.
        links: mesh axes -> seconds of the collectives over them.
        model: of the matrix products without those.
    """

    compute: float
    memory: float
    links: dict[str, float]
    model: float

    @property
    def least(self) -> float:
        """If everything overlaps: the longest of the three."""
        return max(self.compute, self.memory, sum(self.links.values()))

    @property
    def most(self) -> float:
        """If nothing overlaps: their sum, still at the data sheet's speeds."""
        return self.compute + self.memory + sum(self.links.values())

    def utilisation(self, seconds: float) -> float:
        """Model-FLOPs utilisation of a step that takes so long."""
        return self.model / seconds


def roofline(
    topology: Topology,
    axes: dict[str, int],
    *,
    done: float,
    model: float,
    touched: float,
    collectives: list[Collective],
) -> Roofline | None:
    """The roofline of a step; None where the chip's peak is not known.

    Args:
        topology: of the run.
        axes: name -> size of the mesh.
        done: operations of a step of all devices, with those that are computed again or in a bubble.
        model: the same without those.
        touched: bytes that one device reads and writes in its memory.
        collectives: of a step.
    """
    chip = topology.chip
    if chip.peak is None:
        return None
    links: dict[str, float] = {}
    for one in collectives:
        used = one.axes or tuple(axes)
        name = " x ".join(used)
        bandwidth = topology.bandwidth(axes, used, one_way=one.kind == "collective-permute")
        links[name] = links.get(name, 0.0) + one.sent / bandwidth
    per_device = topology.devices * chip.peak
    return Roofline(done / per_device, touched / chip.bandwidth, links, model / per_device)
