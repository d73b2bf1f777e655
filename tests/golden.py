"""Stored numbers that a change of the code must not move unnoticed."""

import json
import os
from pathlib import Path

FOLDER = Path(__file__).parent / "goldens"
# Sums in another order, on another processor or XLA, differ in the sixth digit; a wrong formula in the first.
TOLERANCE = 1e-4


def check_golden(name: str, metrics: dict[str, float], size: float | None = 1.0) -> None:
    """Compares with `goldens/<name>.json`; with UPDATE_GOLDEN=1 writes it instead.

    Differences are relative to the stored number, or to `size` where that is larger; None is a tenth of the
    largest stored number.
    """
    file = FOLDER / f"{name}.json"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        FOLDER.mkdir(exist_ok=True)
        file.write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n", "utf-8")
        return
    stored = json.loads(file.read_text("utf-8"))
    remedy = (
        "if the change is meant (other data, model, loss or randomness), say so in CHANGELOG.md and rewrite "
        "the numbers with UPDATE_GOLDEN=1; if it is not, something broke"
    )
    assert set(metrics) == set(stored), f"{file.name} holds other names: {remedy}"
    size = max(map(abs, stored.values())) / 10 if size is None else size
    moved = {
        key: (stored[key], value)
        for key, value in metrics.items()
        if not abs(value - stored[key]) <= TOLERANCE * max(size, abs(stored[key]))
    }
    assert not moved, f"{file.name}: stored and new numbers differ: {moved}; {remedy}"
