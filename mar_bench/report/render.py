"""Fill the templates of report/templates with values from Python."""

from __future__ import annotations

import re
from typing import Any

import jinja2
from markdown_it import MarkdownIt
from markupsafe import Markup

from mar_bench.report import format as fmt
from mar_bench.report import stats
from mar_bench.utils.console import printable

TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", "±": r"$\pm$",
    "–": "--", "†": r"$^\dagger$", "‡": r"$^\ddagger$", "×": r"$\times$", "≤": r"$\leq$", "≥": r"$\geq$",
    '"': "''", "\n": " ", "[": "{[}", "*": "{*}",  # the last two would be arguments of the \\ before them
}  # fmt: skip


class Best(str):
    """A cell that holds the best number of its column; LaTeX prints this number bold."""


def render(template: str, **parts: Any) -> str:
    """The filled template; templates see ``stats`` and ``fmt``, and in LaTeX the filters ``tex`` and ``key``.

    In Markdown every value but a ``Block`` is made inert; in HTML every value is escaped, and the filter ``md`` turns
    Markdown into HTML; ``is best`` is true of a ``Best``."""
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    if ".tex" in template:  # braces are LaTeX's own
        options |= {"variable_start_string": "<<", "variable_end_string": ">>"}
        options |= {"block_start_string": "<%", "block_end_string": "%>"}
    loader = jinja2.PackageLoader("mar_bench.report")
    if ".md" in template:
        options["finalize"] = lambda value: value if isinstance(value, fmt.Block) else fmt.inline(value)
    options["autoescape"] = ".html" in template
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, **options)
    environment.filters |= {"tex": escape_tex, "key": lambda text: re.sub(r"[^\w.-]", "-", text), "md": from_markdown}
    environment.tests["best"] = lambda cell: isinstance(cell, Best)
    return environment.get_template(template).render(stats=stats, fmt=fmt, **parts)


def from_markdown(text: str) -> Markup:
    """Markdown with tables as HTML; HTML in the text is shown as it is."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    return Markup(parser.render(text if isinstance(text, fmt.Block) else fmt.inline(text)))


def escape_tex(text: object) -> str:
    """Escape a text for LaTeX."""
    escaped = "".join(TEX.get(character, character) for character in printable(str(text), keep="\n"))
    number, bracket, paper = escaped.partition(" (")
    return rf"\textbf{{{number}}}{bracket}{paper}" if isinstance(text, Best) else escaped
