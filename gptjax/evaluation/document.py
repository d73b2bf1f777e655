"""A document of headings, paragraphs, tables and pictures, written as Markdown and as self-contained HTML."""

import base64
import dataclasses
import html
import re
from collections.abc import Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Heading:
    """A section's title."""

    text: str


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of plain text; `numeric` columns are aligned to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawing as SVG text; `name` becomes its file name."""

    name: str
    svg: str
    description: str


Block = Heading | Paragraph | Table | Picture

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 68rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.92rem; }
th, td { text-align: left; vertical-align: top; padding: 0.35rem 0.8rem; border-bottom: 1px solid #ddd; }
th { background: #f3f3f3; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td { white-space: pre-wrap; overflow-wrap: break-word; min-width: 3.5rem; }
td.met { color: #0a6b2d; font-weight: 600; } td.missed { color: #b00020; font-weight: 600; }
img { max-width: 100%; height: auto; }
"""


def write_markdown(path: Path, title: str, blocks: Sequence[Block]) -> None:
    """Writes Markdown; pictures become files in `figures/` beside it."""
    lines = [f"# {_markdown(title)}", ""]
    for block in blocks:
        match block:
            case Heading(text):
                lines += [f"## {_markdown(text)}", ""]
            case Paragraph(text):
                lines += [_markdown(text), ""]
            case Table():
                lines += [markdown_table(block), ""]
            case Picture(name, svg, description):
                figure = path.parent / "figures" / f"{name}.svg"
                figure.parent.mkdir(exist_ok=True)
                figure.write_text(svg, "utf-8")
                lines += [f"![{_markdown(description)}](figures/{name}.svg)", ""]
    path.write_text("\n".join(lines), "utf-8")


def markdown_table(table: Table) -> str:
    """A table in Markdown."""
    rule = ["---:" if i in table.numeric else "---" for i in range(len(table.header))]
    cells = [[_markdown(cell) for cell in row] for row in (table.header, *table.rows)]
    cells.insert(1, rule)
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def write_html(path: Path, title: str, blocks: Sequence[Block]) -> None:
    """Writes one HTML file that loads nothing from elsewhere; all text is escaped."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"<h2>{html.escape(text)}</h2>")
            case Paragraph(text):
                parts.append(f"<p>{html.escape(text)}</p>")
            case Table():
                parts.append(_html_table(block))
            case Picture(_, svg, description):
                # An image of its own keeps the drawing's ids and styles apart from the page's.
                data = base64.b64encode(svg.encode()).decode()
                parts.append(f'<img alt="{html.escape(description)}" src="data:image/svg+xml;base64,{data}">')
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )
    path.write_text(page, "utf-8")


def text_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], numeric: frozenset[int] = frozenset()
) -> str:
    """A table for the terminal, its columns aligned by spaces."""
    cells = [list(header), *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if i in numeric else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _html_table(table: Table) -> str:
    def cell(tag: str, i: int, text: str) -> str:
        kind = "number" if i in table.numeric else text if text in ("met", "missed") else ""
        return f"<{tag}{f' class={kind}' if kind else ''}>{html.escape(text)}</{tag}>"

    head = "".join(cell("th", i, text) for i, text in enumerate(table.header))
    rows = ["".join(cell("td", i, text) for i, text in enumerate(row)) for row in table.rows]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'


def _markdown(text: str) -> str:
    escaped = re.sub(r"([\\`*_\[\]#|~])", r"\\\1", text)
    escaped = escaped.replace("&", "&amp;").replace("<", "&lt;")
    return escaped.replace("\r", "").replace("\n", "<br>")
