"""A user's files: found by suffix, read plain or gzipped, rows checked one by one."""

import difflib
import gzip
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from gptjax.data.quality import BadRows, DataError

Split = Literal["train", "heldout"]


def source_files(path: str | Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The file `path`, or the files below the directory `path`, that end in a suffix or suffix + ".gz".

    Sorted by name. Raises DataError when there is none.
    """
    remedy = "name a file or a directory of such files"
    if not is_path(path):
        raise DataError(f"{path} does not exist: {remedy}")
    path = Path(path)
    wanted = tuple(suffix + end for suffix in suffixes for end in ("", ".gz"))
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    files = [file for file in files if file.name.endswith(wanted)]
    if not files:
        raise DataError(f"{path} has no file that ends in {', '.join(wanted)}: {remedy}")
    return files


def is_path(name: str | Path) -> bool:
    """Whether there is a file or directory of that name; what no file can be called is none."""
    return os.path.exists(name)  # unlike Path.exists, it answers for a name that is too long


def read_bytes(file: Path) -> bytes:
    """The content of `file`, decompressed when its name ends in .gz.

    Raises DataError when the file can't be read or the gzip stream is broken.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} can't be read ({error.strerror}): change its permissions") from error
    if file.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} is not a whole gzip file ({error}): fetch it again") from error


def read_jsonl(file: Path, bad_rows: BadRows) -> Iterator[tuple[int, dict]]:
    """The JSON objects of `file` with their line numbers (from 1).

    Rows that are not UTF-8 or not a JSON object are counted in `bad_rows`; blank lines are no rows.
    Good rows are left to the caller to count. A row that nests too deeply, or holds a number of thousands of
    digits, is not JSON to us. Raises DataError when the file can't be read.
    """
    for number, line in enumerate(read_bytes(file).removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            bad_rows.add("not UTF-8", file, number)
        except (ValueError, RecursionError):
            bad_rows.add("not JSON", file, number)
        else:
            if isinstance(row, dict):
                yield number, row
            else:
                bad_rows.add("not JSON: a row must be an object", file, number)


def digest(text: str) -> int:
    """sha256 of `text` as an integer."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), "big")


def bucket(text: str, buckets: int) -> int:
    """sha256(text) mod `buckets`: the same bucket on every machine, whatever else is in the data."""
    return digest(text) % buckets


def held_out_keys(keys: Sequence[str], buckets: int) -> set[str]:
    """The keys whose rows are held out: those in bucket 0, and never all or none of several different ones.

    Where the buckets leave a side empty, it is the keys with the fewest rows, of equal ones those with the
    least hash, up to one row in `buckets` but at least one key. A single key is not held out.
    """
    rows = Counter(keys)
    heldout = {key for key in rows if bucket(key, buckets) == 0}
    if 0 < len(heldout) < len(rows):
        return heldout
    heldout, room = set(), len(keys) / buckets
    for key in sorted(rows, key=lambda key: (rows[key], digest(key))) if len(rows) > 1 else ():
        if not heldout or rows[key] <= room:
            heldout.add(key)
            room -= rows[key]
    return heldout


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
