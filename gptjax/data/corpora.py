"""Documents to pretrain on: the bundled corpora by name, a user's files by path."""

import importlib
import lzma
import math
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from gptjax.data import in_context, ratings
from gptjax.data.code import read_code, stdlib_files
from gptjax.data.files import (
    Split,
    check_split,
    held_out_keys,
    is_path,
    is_utf8,
    read_bytes,
    read_jsonl,
    source_files,
    unknown_source,
)
from gptjax.data.quality import BadRows, DataError

HELD_OUT = 20  # one in twenty
SUFFIXES = (".txt", ".jsonl", ".py")


@dataclass(frozen=True)
class Document:
    """A text and where it came from: "shakespeare/hamlet", or a file's path."""

    text: str
    source: str


def cut(text: str) -> tuple[str, str]:
    """`text` cut so that the second part is its last 5 %, or up to 10 % to begin with a line, else a word."""
    end = len(text) - math.ceil(len(text) / HELD_OUT)
    start = len(text) - 2 * math.ceil(len(text) / HELD_OUT)
    places = (text.rfind(space, max(0, start), end) + 1 for space in "\n ")
    place = next((place for place in places if place), end)
    return text[:place], text[place:]


def shakespeare(split: Split, bad_rows: BadRows) -> list[Document]:
    """The 42 works; held out is the end of each."""
    packed = (resources.files("gptjax.assets") / "shakespeare.txt.xz").read_bytes()
    works = lzma.decompress(packed).decode("utf-8").split("\x1e")
    documents = []
    for work in works:
        name, text = work.split("\n", 1)
        documents.append(Document(cut(text)[split == "heldout"], f"shakespeare/{name}"))
    return documents


def pydoc(split: Split, bad_rows: BadRows) -> list[Document]:
    """The language reference that every Python carries; held out is every 20th topic by name."""
    topics = importlib.import_module("pydoc_data.topics").topics
    return [
        Document(topics[name], f"pydoc/{name}")
        for index, name in enumerate(sorted(topics))
        if (index % HELD_OUT == 0) == (split == "heldout")
    ]


def rated_texts(split: Split, bad_rows: BadRows) -> list[Document]:
    """The texts of the human ratings, split as the ratings are."""
    texts = ratings.split_ratings(ratings.load_ratings())[split == "heldout"]
    return [Document(text.text, f"ratings/{text.source}") for text in texts]


def stdlib(split: Split, bad_rows: BadRows) -> list[Document]:
    """The standard library's source files (`data/code.py`), split as a user's documents are."""
    documents, counts = _read_stdlib()
    bad_rows.include(counts)
    return split_documents(documents, split, "stdlib")


@cache
def _read_stdlib() -> tuple[list[Document], BadRows]:
    counts = BadRows()
    return code_documents(stdlib_files(), "stdlib/", counts), counts


def majority(split: Split, bad_rows: BadRows) -> list[Document]:
    """Generated lists of pairs, to be learnt within each of them (`data/in_context.py`)."""
    texts = in_context.majority_texts(split)
    return [Document(text, f"majority/{split}/{number}") for number, text in enumerate(texts)]


BUNDLED = {
    "shakespeare": shakespeare,
    "pydoc": pydoc,
    "ratings": rated_texts,
    "stdlib": stdlib,
    "majority": majority,
}


def read_documents(
    name_or_path: str | Path, *, split: Split = "train", bad_rows: BadRows | None = None
) -> list[Document]:
    """The documents of one split of a bundled corpus or of a user's files.

    Files: `.txt` (a document a file), `.jsonl` (a document a row, in the field `text` or in the one that the
    name ends in after a colon, as in `pairs.jsonl:zh`), `.py` (a document a file, by the rules of
    `data/code.py`), each also with `.gz`, or a directory of such. Held out are the documents whose sha256 is
    0 mod 20, or those with the least sha256 where that is none; where there is one document only, its last
    5 %, from the start of a line or a word where one is near. The counts of the files are added to
    `bad_rows`; the limit is on these files alone.

    Raises DataError for an unknown name, for a split without a document and for more than 0.1 % bad rows.
    """
    check_split(split)
    if str(name_or_path) in BUNDLED:
        return BUNDLED[str(name_or_path)](split, BadRows() if bad_rows is None else bad_rows)
    path, field = split_field(str(name_or_path))
    if not is_path(path):
        raise DataError(unknown_source(name_or_path, BUNDLED))
    documents, own_rows = [], BadRows()
    files = source_files(path, SUFFIXES)
    code = {str(file): file for file in files if file.name.removesuffix(".gz").endswith(".py")}
    for file in files:
        if file.name.removesuffix(".gz").endswith(".jsonl"):
            documents += rows_of_jsonl(file, own_rows, field)
        elif str(file) not in code:
            documents += text_file(file, own_rows)
    documents += code_documents(code, "", own_rows)
    if bad_rows is not None:
        bad_rows.include(own_rows)
    own_rows.check()
    return split_documents(documents, split, name_or_path)


def split_field(name: str) -> tuple[str, str]:
    """A path and the field of its rows that holds the text: what stands after a last colon, else `text`."""
    path, colon, field = name.rpartition(":")
    return (path, field) if colon and field and is_path(path) and not is_path(name) else (name, "text")


def split_documents(documents: list[Document], split: Split, name: str | Path) -> list[Document]:
    """The train or the held-out part of a user's documents; DataError when it is empty."""
    if len(documents) == 1:
        part = cut(documents[0].text)[split == "heldout"]
        chosen = [Document(part, documents[0].source)] if part else []
    else:
        heldout = held_out_keys([d.text for d in documents], HELD_OUT)
        chosen = [d for d in documents if (d.text in heldout) == (split == "heldout")]
    if not chosen:
        different = len({d.text for d in documents})
        raise DataError(
            f"{name} has no {split} document among its {len(documents)} ({different} differ): add more text"
        )
    return chosen


def code_documents(files: dict[str, Path], prefix: str, bad_rows: BadRows) -> list[Document]:
    """The documents of source files by name, each text once."""
    read = ((name, read_code(file, bad_rows)) for name, file in files.items())
    texts = {}
    for name, text in read:
        if text is not None and texts.setdefault(text, name) != name:
            bad_rows.repeat(1)
    return [Document(text, f"{prefix}{name}") for text, name in texts.items()]


def text_file(file: Path, bad_rows: BadRows) -> list[Document]:
    """The one document of a text file, or none when it is bad."""
    try:
        text = read_bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad_rows.add("not UTF-8", file, error.object[: error.start].count(b"\n") + 1)
        return []
    return checked_document(text, file, 1, bad_rows)


def rows_of_jsonl(file: Path, bad_rows: BadRows, field: str = "text") -> list[Document]:
    """A document for each good row of a JSONL file, in the named field."""
    documents = []
    for line, row in read_jsonl(file, bad_rows):
        if field not in row:
            bad_rows.add(f"missing field: {field}", file, line)
        elif not isinstance(row[field], str):
            bad_rows.add(f"malformed field: {field} must be text", file, line)
        else:
            documents += checked_document(row[field], file, line, bad_rows)
    return documents


def checked_document(text: str, file: Path, line: int, bad_rows: BadRows) -> list[Document]:
    """The document of a text that is neither empty nor without a UTF-8 form (JSON can spell half a pair)."""
    if not text.strip():
        bad_rows.add("empty text", file, line)
    elif not is_utf8(text):
        bad_rows.add("not UTF-8", file, line)
    else:
        bad_rows.good()
        return [Document(text, str(file))]
    return []
