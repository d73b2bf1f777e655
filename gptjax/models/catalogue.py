"""What the published models need: parameters, and memory for weights, training and the key/value cache.

`assets/models.json` keeps what the declared shapes say, so that asking needs no JAX; a test derives it anew.
`python -m gptjax.models.catalogue` writes it after a change of the families.
"""

import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from gptjax.config import ConfigError, nearest

FORMATS = ("float32", "bfloat16", "int8", "int4")
STORED = resources.files("gptjax.assets") / "models.json"
NOTE = """Sizes are of numbers alone, 1 GB = 10^9 bytes.
int8, int4: linear maps with a scale per output; embeddings, output matrices, norms and biases in float32.
training: weights, gradient and AdamW's two moments in float32; activations come on top.
cache: keys and values of one sequence of full context in bfloat16; the Transformer's, target and source."""


def entry(family: str, size: str) -> dict:
    """One published model, from its declared shapes; no parameter is made.

    Args:
        family: key of `FAMILIES`.
        size: one of its sizes.

    Returns:
        `family, title, size, layers, width, context` (tokens), `parameters`, and in bytes `weights` by
        format, `training` and `cache`, which is None for an encoder, which keeps none.
    """
    from gptjax.models.families import FAMILIES
    from gptjax.models.functional import ModelDefinition
    from gptjax.models.quantization import WEIGHT_FORMATS, quantized_bytes, tree_bytes

    declared = FAMILIES[family]
    config = declared.make(size)
    definition = ModelDefinition(declared.model, config)
    abstract, count = definition.abstract, definition.parameter_count
    weights = {"float32": tree_bytes(abstract), "bfloat16": 2 * count}
    weights |= {name: quantized_bytes(abstract, small) for name, small in WEIGHT_FORMATS.items()}
    return {
        "family": family,
        "title": declared.title,
        "size": size,
        "layers": config.layers,
        "width": config.width,
        "context": config.context_length,
        "parameters": count,
        "weights": weights,
        "training": 4 * tree_bytes(abstract),
        "cache": cache_bytes(config, declared.caches * config.context_length) or None,
    }


def cache_bytes(config, slots: int) -> int:
    """Bytes of the keys and values of one sequence in bfloat16: `2 N K C S * 2`."""
    return 2 * config.layers * config.key_heads * config.head_size * slots * 2


def derive() -> list[dict]:
    """Every size of every family."""
    from gptjax.models.families import FAMILIES

    return [entry(name, size) for name, family in FAMILIES.items() for size in family.sizes]


def catalogue(families: Iterable[str] = ()) -> list[dict]:
    """Every size of the named families, or of all, as stored.

    Raises:
        ConfigError: no such family.
    """
    stored: dict[str, list[dict]] = {}
    for found in json.loads(STORED.read_text("utf-8")):
        stored.setdefault(found["family"], []).append(found)
    families = list(families) or list(stored)
    for name in families:
        if name not in stored:
            raise ConfigError(
                f"there is no family '{name}': the nearest is '{nearest(name, stored)}' of "
                f"{', '.join(stored)}"
            )
    return [found for name in families for found in stored[name]]


def catalogue_text(entries: list[dict]) -> str:
    """The entries as a table for the terminal, and what its columns mean."""
    head = ["family", "size", "parameters", "context", *FORMATS, "training", "cache"]
    rows = [
        [
            e["title"],
            e["size"],
            f"{e['parameters']:,}",
            f"{e['context']:,}",
            *(_amount(e["weights"][name]) for name in FORMATS),
            _amount(e["training"]),
            "-" if e["cache"] is None else _amount(e["cache"]),
        ]
        for e in entries
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells):
        names = [cell.ljust(width) for cell, width in zip(cells[:2], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
        return "  ".join([*names, *numbers])

    return "\n".join([*map(line, [head, *rows]), "", NOTE])


def _amount(count: int) -> str:
    """Bytes in three digits: "498 MB", "1.76 TB"."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 999.5:
        value, units = value / 1000, units[1:]
    return f"{value:#.3g}".rstrip(".") + f" {units[0]}"


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(found) for found in derive())
    Path(str(STORED)).write_text(f"[\n{lines}\n]\n", "utf-8")
