"""Every fault that docs/reliability.md names has a group in CI and tests that carry its mark."""

import re

from documentation import ROOT, table

MARK = re.compile(r"mark\.fault\(name=\"(\w+)\"\)")
SOURCES = {path.name: path.read_text("utf-8") for path in (ROOT / "tests").glob("test_*.py")}


def marks(file: str, test: str) -> list[str]:
    """The groups of a test: of its own decorators and of its module."""
    own = re.search(rf"^((?:@.*\n)*)def {test}\(", SOURCES[file], re.MULTILINE)
    assert own, f"{file} has no test {test}"
    module = re.search(r"^pytestmark = (.*?)\n(?=\S)", SOURCES[file], re.MULTILINE | re.DOTALL)
    return MARK.findall(own[1]) + MARK.findall(module[1] if module else "")


def test_every_promise_has_a_group_and_every_group_its_tests():
    page = "docs/reliability.md"
    promised = {group for row in table(page, "Promises") for group in row[2].split(", ")}
    proven = {row[0]: row[1].split(", ") for row in table(page, "Tests that hold this page to its word")}
    assert promised == proven.keys()
    for group, tests in proven.items():
        for test in tests:
            assert marks(*test.split("::")) == [group], test


def test_ci_runs_every_group():
    loop = re.search(r"^for fault in ([\w ]+); do$", (ROOT / ".ci/run").read_text("utf-8"), re.MULTILINE)
    marked = {name for text in SOURCES.values() for name in MARK.findall(text)}
    assert sorted(loop[1].split()) == sorted(marked)
