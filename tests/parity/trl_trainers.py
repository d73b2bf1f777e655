"""trl's trainers without their models: stand-ins that run a trainer's own lines on arrays of the tests.

Whichever release is imported is checked; the environment variable TRL_WANTED names the one that it must be.
"""

import importlib
import inspect
import os
import textwrap
from collections import defaultdict
from unittest.mock import MagicMock

import pytest

# Without the variable the tests are skipped where trl is absent; with it nothing is.
WANTED = os.environ.get("TRL_WANTED", "")
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"


def imported(name: str, reason: str):
    """The module, or a skip where it is absent and no release is wanted."""
    return importlib.import_module(name) if WANTED else pytest.importorskip(name, reason=reason)


torch = imported("torch", "torch is not installed (pip install torch)")
trl = imported("trl", "trl is not installed (pip install trl)")
assert trl.__version__.startswith(WANTED), f"trl {WANTED} is wanted, but {trl.__version__} was imported"


def stand_in(**attributes):
    """A trainer with these attributes, in one process and without a model."""
    trainer = MagicMock(aux_loss_enabled=False, _total_train_tokens=0, _tp_size=1, **attributes)
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    trainer.accelerator.device = torch.device("cpu")
    trainer.accelerator.gather = trainer.accelerator.gather_for_metrics = lambda x: x
    trainer.accelerator.reduce = lambda x, reduction: x
    return trainer


def lines_of(function, first: str, last: str) -> str:
    """The lines of a function from one that begins with `first` to the next one that begins with `last`."""
    lines = inspect.getsource(function).splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(first))
    end = next(i for i, line in enumerate(lines) if i >= start and line.strip().startswith(last))
    return textwrap.dedent("\n".join(lines[start : end + 1]))
