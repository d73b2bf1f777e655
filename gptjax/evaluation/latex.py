"""Tables for LaTeX, with the rules of the package booktabs."""

import re

from gptjax.evaluation.document import Table

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def latex_table(table: Table) -> str:
    """A `tabular`; numeric columns are aligned to the right.

    Example:
        >>> from gptjax.evaluation.document import Table
        >>> print(latex_table(Table(["arm", "gain"], [["a_b", "-0.1"]], numeric=frozenset({1}))))
        \\begin{tabular}{lr}
        \\toprule
        arm & gain \\\\
        \\midrule
        a\\_b & $-$0.1 \\\\
        \\bottomrule
        \\end{tabular}
    """
    columns = "".join("r" if i in table.numeric else "l" for i in range(len(table.header)))
    head, *rows = (" & ".join(map(escape, row)) + r" \\" for row in (table.header, *table.rows))
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}"])


def escape(text: str) -> str:
    """Plain text as LaTeX; a minus before a digit becomes a minus sign."""
    escaped = "".join(_SPECIAL.get(character, character) for character in text)
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)
