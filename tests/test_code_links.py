"""Links of the documentation to lines of code point at the definitions that they name."""

import ast
import os
import re
from functools import cache

import pytest
from documentation import PAGES, ROOT

LINK = re.compile(r"\[`([\w.]+)`\]\(([\w./]+\.py)#L(\d+)\)")


@cache
def definitions(file) -> dict[str, int]:
    """Name -> line of the functions, classes and constants of a module; those of a class as `Class.name`."""
    found = {}

    def visit(body, prefix):
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.setdefault(prefix + node.name, node.lineno)
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{node.name}.")
            for target in getattr(node, "targets", [getattr(node, "target", None)]):
                if isinstance(target, ast.Name):
                    found.setdefault(prefix + target.id, node.lineno)

    visit(ast.parse(file.read_text("utf-8")).body, "")
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if LINK.search(PAGES[page])])
def test_every_line_holds_what_the_link_names(page):
    """With UPDATE_GOLDEN=1 the lines of the page are set right instead."""
    unknown, moved, text = [], [], PAGES[page]
    for name, path, line in sorted(set(LINK.findall(text))):
        now = definitions((ROOT / page).parent / path).get(name)
        if now is None:
            unknown.append(f"{name} of {path}")
        elif now != int(line):
            moved.append(f"{name} of {path} to line {now}")
            text = text.replace(f"[`{name}`]({path}#L{line})", f"[`{name}`]({path}#L{now})")
    assert not unknown, f"{page} links to what the code does not define: {', '.join(unknown)}"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        (ROOT / page).write_text(text, "utf-8")
        return
    assert not moved, f"{page}: definitions have moved, {moved}; UPDATE_GOLDEN=1 sets the links right"


def test_the_lineage_is_linked_line_by_line():
    assert len(LINK.findall(PAGES["docs/lineage.md"])) > 60
    assert not re.findall(r"\.py#(?!L\d+\))", PAGES["docs/lineage.md"])
