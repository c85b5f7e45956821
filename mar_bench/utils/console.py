"""Output of commands: plain tables, readable on a terminal and in a log."""

from __future__ import annotations


def console_table(heading: list[str], lines: list[list[str]]) -> str:
    from tabulate import tabulate

    return tabulate(lines, heading, tablefmt="simple", disable_numparse=True)
