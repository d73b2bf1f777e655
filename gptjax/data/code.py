"""Source files of Python to train on, by the rules of Codex's data (Chen et al. 2021, section 3.1)."""

import ast
import io
import re
import sysconfig
import tokenize
from functools import cache
from importlib import resources
from pathlib import Path

from gptjax.data.files import is_utf8, read_bytes
from gptjax.data.quality import BadRows

LARGEST_FILE = 1_000_000  # bytes
LONGEST_MEAN_LINE = 100  # characters
LONGEST_LINE = 1000
LEAST_ALPHANUMERIC = 0.25  # the paper does not give its threshold
# The paper does not say how it tells generated files either: by what the first lines say.
FIRST_LINES = 10
GENERATED = re.compile(r"auto(matically)?[- ]?generated|generated (by|from|with) \S+[./]\S|do not edit", re.I)
# Tests, and what does not belong to the library or is written for another Python.
OUTSIDE_STDLIB = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "__pycache__"}


@cache
def humaneval_names() -> tuple[str, ...]:
    """The names of the functions that HumanEval asks for, without repetition."""
    packed = resources.files("gptjax.assets") / "humaneval_names.txt"
    return tuple(packed.read_text("utf-8").split())


def stdlib_files() -> dict[str, Path]:
    """Name -> file of the standard library that runs this program, without tests; sorted."""
    root = Path(sysconfig.get_path("stdlib"))
    found = {str(file.relative_to(root)): file for file in sorted(root.rglob("*.py"))}
    return {name: file for name, file in found.items() if not OUTSIDE_STDLIB & set(Path(name).parts)}


def read_code(file: Path, bad_rows: BadRows) -> str | None:
    """The text of a source file, or None for one that is bad or left out; both are counted in `bad_rows`.

    Functions named as one of HumanEval are cut out, so that no solution is learnt by heart.
    """
    content = read_bytes(file)
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        text = io.TextIOWrapper(io.BytesIO(content), encoding).read()
    except (SyntaxError, UnicodeDecodeError):
        bad_rows.add("not UTF-8", file, 1)
        return None
    why = "files larger than 1 MB" if len(content) > LARGEST_FILE else why_left_out(text)
    if why:
        bad_rows.leave_out(why)
        return None
    try:
        text, functions = without_functions(text, humaneval_names())
    except (SyntaxError, ValueError, RecursionError):
        bad_rows.leave_out("files that do not parse")
        return None
    if functions:
        bad_rows.leave_out("functions named as in HumanEval", functions)
    bad_rows.good()
    return text


def why_left_out(text: str) -> str:
    """The rule by which a source file is left out; "" for one that is kept.

    By the order of the rules: empty, probably generated, mean line longer than 100 characters, a line longer
    than 1,000, less than a quarter of the characters alphanumeric.
    """
    lines = text.splitlines()
    if not text.strip() or not is_utf8(text):
        return "empty files"
    if GENERATED.search("\n".join(lines[:FIRST_LINES])):
        return "generated files"
    if sum(map(len, lines)) / len(lines) > LONGEST_MEAN_LINE:
        return "files of long lines on average"
    if max(map(len, lines)) > LONGEST_LINE:
        return "files with a line over 1,000 characters"
    if sum(map(str.isalnum, text)) / len(text) < LEAST_ALPHANUMERIC:
        return "files of few letters and digits"
    return ""


def without_functions(text: str, names: tuple[str, ...]) -> tuple[str, int]:
    """The source without the functions and methods of these names, and how many there were.

    A block that held nothing else keeps a `pass`, so that the source still compiles. Raises SyntaxError for
    what is not Python and may hold such a function.
    """
    if not re.search(rf"\bdef\s+({'|'.join(map(re.escape, names))})\b", text):
        return text, 0
    lines, tree, count = text.split("\n"), ast.parse(text), 0
    for parent in ast.walk(tree):
        for block in _blocks(parent):
            named = [node for node in block if _is_function(node) and node.name in names]
            count += len(named)
            for node in named:
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                lines[first - 1 : node.end_lineno] = [None] * (node.end_lineno - first + 1)
            if named and len(named) == len(block):
                lines[named[0].end_lineno - 1] = " " * named[0].col_offset + "pass"
    return "\n".join(line for line in lines if line is not None), count


def _blocks(node) -> list[list]:
    """The lists of statements in a node."""
    fields = (value for _, value in ast.iter_fields(node) if isinstance(value, list))
    return [value for value in fields if value and isinstance(value[0], ast.stmt)]


def _is_function(node) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
