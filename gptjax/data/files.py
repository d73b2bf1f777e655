"""A user's files: found by suffix, read plain or gzipped, rows checked one by one."""

import difflib
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from gptjax.data.quality import BadRows, DataError

Split = Literal["train", "heldout"]


def source_files(path: str | Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The file `path`, or the files below the directory `path`, that end in a suffix or suffix + ".gz".

    Sorted by name. Raises DataError when there is none.
    """
    path = Path(path)
    wanted = tuple(suffix + end for suffix in suffixes for end in ("", ".gz"))
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    files = [file for file in files if file.name.endswith(wanted)]
    if not files:
        reason = "does not exist" if not path.exists() else f"has no file that ends in {', '.join(wanted)}"
        raise DataError(f"{path} {reason}: name a file or a directory of such files")
    return files


def read_bytes(file: Path) -> bytes:
    """The content of `file`, decompressed when its name ends in .gz.

    Raises DataError when the gzip stream is broken.
    """
    content = file.read_bytes()
    if file.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise DataError(f"{file} is not a whole gzip file ({error}): fetch it again") from error


def read_jsonl(file: Path, bad_rows: BadRows) -> Iterator[tuple[int, dict]]:
    """The JSON objects of `file` with their line numbers (from 1).

    Rows that are not UTF-8 or not a JSON object are counted in `bad_rows`; blank lines are no rows.
    Good rows are left to the caller to count.
    """
    for number, line in enumerate(read_bytes(file).removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            bad_rows.add("not UTF-8", file, number)
        except json.JSONDecodeError:
            bad_rows.add("not JSON", file, number)
        else:
            if isinstance(row, dict):
                yield number, row
            else:
                bad_rows.add("not JSON", file, number)


def bucket(text: str, buckets: int) -> int:
    """sha256(text) mod `buckets`: the same bucket on every machine, whatever else is in the data."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), "big") % buckets


def check_split(split: str) -> None:
    """Raises DataError when `split` is neither "train" nor "heldout"."""
    if split not in ("train", "heldout"):
        raise DataError(f"split {split!r} is neither 'train' nor 'heldout'")


def is_utf8(text: str) -> bool:
    """Whether `text` has a UTF-8 form; half a surrogate pair has none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def unknown_source(name: str | Path, bundled: Iterable[str]) -> str:
    """The sentence for a name that is neither bundled nor a path."""
    nearest = difflib.get_close_matches(str(name), bundled, n=1, cutoff=0.0)[0]
    return (
        f"there is no bundled source and no file named '{name}': the nearest bundled name is '{nearest}' "
        f"(bundled: {', '.join(bundled)})"
    )
