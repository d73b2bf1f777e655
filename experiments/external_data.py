"""Where experiments find the data that the package does not carry, and one set of it as rows of JSONL.

`python experiments/external_data.py FILE` writes the pairs that experiments/hh/arguments.py learns from.
"""

import os
import sys
from pathlib import Path

from gptjax.config import ConfigError
from gptjax.runs import write_jsonl_atomic

LONGEST = 350  # characters of an argument: with its prompt it fits into a row of 256 tokens


def external(path: str) -> str:
    """The path of a file or folder of real data.

    It lies in the folder that the environment variable GPTJAX_DATA names, by default in `../shared/data`
    beside this checkout; README.md says where each file comes from.

    Raises:
        ConfigError: there is no such file.
    """
    checkout = Path(__file__).absolute().parent.parent
    folder = Path(os.environ.get("GPTJAX_DATA") or checkout.parent / "shared" / "data")
    found = folder / path
    if not found.exists():
        raise ConfigError(
            f"this experiment reads {found}, which is not there: experiments/README.md says where it comes "
            "from; set GPTJAX_DATA to the folder that holds it"
        )
    return str(found)


def argument_pairs(folder: Path) -> list[dict]:
    """The pairs of UKPConvArg1 of at most LONGEST characters each: `prompt`, `chosen`, `rejected`, `source`.

    A file is a side of a topic, its rows id, which of both convinces more, and both, separated by tabs.
    """
    rows = []
    for file in sorted(folder.glob("*.csv")):
        topic, side = (part.replace("-", " ").strip() for part in file.stem.split("_", 1))
        prompt = f"Argue about {topic}: {side}."
        for line in file.read_text("utf-8").splitlines()[1:]:
            _, better, first, second = line.split("\t")
            chosen, rejected = (first, second) if better == "a1" else (second, first)
            if max(len(chosen), len(rejected)) <= LONGEST:
                rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "source": topic})
    return rows


def main(file: Path) -> None:
    """Writes the pairs of arguments."""
    rows = argument_pairs(Path(external("preferences/ukpconvarg1/strict_pairs")))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl_atomic(file, rows)
    print(f"{len(rows)} pairs in {file}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
