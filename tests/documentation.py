"""What the pages of the documentation hold: examples, commands, sessions, tables."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "experiments/README.md"]
FILES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in FILES}


# A link to a line of code, labelled with what is defined there: [`policy_loss`](../gptjax/losses/ppo.py#L76).
LINE = re.compile(r"\[`?(?P<name>[\w.]+)`?\]\((?P<path>[^)\s]+\.py)#L(?P<line>\d+)\)")


def defines(name: str, line: str) -> bool:
    """Whether a line of Python defines the name, or its last part: as function, class, variable or field."""
    name = re.escape(name.split(".")[-1])
    return bool(re.match(rf"\s*(?:def|class) {name}\b|{name}\b.* = |\s+{name}: ", line))


def wrong_lines(page: str) -> dict[str, int]:
    """The links of a page to lines that do not define their label -> the line that does, or 0."""
    wrong = {}
    for link in LINE.finditer(PAGES[page]):
        file = (ROOT / page).parent / link["path"]
        lines = file.read_text("utf-8").splitlines() if file.exists() else []
        given = int(link["line"])
        if not (0 < given <= len(lines) and defines(link["name"], lines[given - 1])):
            found = (number for number, line in enumerate(lines, 1) if defines(link["name"], line))
            wrong[link[0]] = next(found, 0)
    return wrong


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
