"""Output of commands: plain tables and YAML, readable on a terminal and in a log."""

from __future__ import annotations

from typing import Any


def console_table(heading: list[str], lines: list[list[str]]) -> str:
    from tabulate import tabulate

    return tabulate(lines, heading, tablefmt="simple", disable_numparse=True)


def to_yaml(tree: dict[str, Any]) -> str:
    """Plain containers as YAML, keys in the order given, tuples as lists."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(tree)).rstrip()
