"""Fill the templates of report/templates with values from Python."""

from __future__ import annotations

from typing import Any

import jinja2

from mar_bench.report import format as fmt
from mar_bench.report import stats

TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", "±": r"$\pm$",
    "–": "--", "†": r"$^\dagger$", "‡": r"$^\ddagger$", "×": r"$\times$", "≤": r"$\leq$", "≥": r"$\geq$",
    '"': "''", "\n": " ", "[": "{[}", "*": "{*}",  # the last two would be arguments of the \\ before them
}  # fmt: skip


class Best(str):
    """A cell that holds the best number of its column; LaTeX prints this number bold."""


def render(template: str, **parts: Any) -> str:
    """The filled template; templates see ``stats`` and ``fmt``, and in LaTeX the filter ``tex``."""
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    if ".tex" in template:  # braces are LaTeX's own
        options |= {"variable_start_string": "<<", "variable_end_string": ">>"}
        options |= {"block_start_string": "<%", "block_end_string": "%>"}
    loader = jinja2.PackageLoader("mar_bench.report")
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, **options)
    environment.filters["tex"] = escape_tex
    return environment.get_template(template).render(stats=stats, fmt=fmt, **parts)


def escape_tex(text: object) -> str:
    """Escape a text for LaTeX."""
    escaped = "".join(TEX.get(character, character) for character in str(text))
    number, bracket, paper = escaped.partition(" (")
    return rf"\textbf{{{number}}}{bracket}{paper}" if isinstance(text, Best) else escaped
