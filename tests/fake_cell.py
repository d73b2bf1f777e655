"""A stage with a seed and a base, for the tests of sweeps."""

from pathlib import Path

from gptjax.config import configclass
from gptjax.ranges import Seed
from gptjax.runs import mark_done, open_run


@configclass
class CellConfig:
    """What the run is to find.

    Attributes:
        base: a run folder.
        rate: added to the figure.
        end: how the run ends.
        seed: added to the figure.
    """

    base: str = ""
    rate: float = 0.0
    end: str = "well"
    seed: Seed = 0


@configclass
class MeasureConfig:
    """A measurement without a seed.

    Attributes:
        models: run folders.
    """

    models: tuple[str, ...] = ()


def run(config: CellConfig, folder: Path) -> None:
    """Finds the sum of the rate and the seed."""
    mark_done(open_run(folder, config), {"heldout": {"loss": config.rate + config.seed}})
