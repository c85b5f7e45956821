"""Output of commands: plain tables, readable on a terminal and in a log."""

from __future__ import annotations

import unicodedata


def printable(text: str, keep: str = "") -> str:
    """The text with control characters as escapes, except those in ``keep``: ESC, which terminals obey, as ``\\x1b``.

    So are line breaks, bidirectional marks and the surrogates that stand for bytes of file names."""
    if text.isprintable():
        return text
    return "".join(c if c in keep or unicodedata.category(c)[0] != "C" and c not in "\u2028\u2029"
                   else c.encode("unicode_escape").decode() for c in text)  # fmt: skip


def console_table(heading: list[str], lines: list[list[str]]) -> str:
    from tabulate import tabulate

    cells = [[printable(cell) for cell in line] for line in [heading, *lines]]
    return tabulate(cells[1:], cells[0], tablefmt="simple", disable_numparse=True)
