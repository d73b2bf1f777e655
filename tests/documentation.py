"""What the pages of the documentation hold: examples, commands, sessions, tables."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "experiments/README.md"]
FILES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in FILES}


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """The lines of a page's bash blocks, without comments."""
    lines = [line.split(" #")[0].strip() for block in blocks(page, "bash") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def experiment_files() -> dict[str, str]:
    """Path -> text of the Python examples that begin with the path of an experiment file."""
    examples = [example for page in PAGES for example in blocks(page, "python")]
    named = [re.match(r"# (experiments/\w+\.py)\n", example) for example in examples]
    return {match[1]: example for match, example in zip(named, examples, strict=True) if match}


def run_examples(page: str, names: dict) -> None:
    """Runs the Python examples of a page in order, those that are experiment files left out."""
    for number, example in enumerate(blocks(page, "python"), 1):
        if not example.startswith("# experiments/"):
            exec(compile(example, f"{page}, example {number}", "exec"), names)


def sessions(page: str) -> list[tuple[str, str]]:
    """(command, what it prints) of a page's console blocks."""
    text = "".join(blocks(page, "console"))
    return [(command, printed.strip()) for command, printed in re.findall(r"^\$ (.*)\n([^$]*)", text, re.M)]


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, without its head; code marks are taken off."""
    section = PAGES[page].split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.search(r"^\|[-|]+\|\n((?:\|.*\n)+)", section, re.MULTILINE)[1]
    return [[cell.strip().replace("`", "") for cell in row[1:-1].split(" | ")] for row in rows.splitlines()]
