"""YAML as this project reads it: a small dialect without surprises, for files and for overrides alike.

A plain word is a number, true, false or null only where YAML 1.1 and 1.2 agree; a word that they read differently
(010, 0x1F, 1_000, 1:30) is refused, and any other (yes, off) is a text. Tags and duplicate keys are refused. Aliases
and merge keys work, but size, depth and what aliases expand to are bounded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from mar_bench.utils.errors import shortened

MOST_BYTES, MOST_NODES, MOST_DEPTH = 2**20, 20_000, 40  # of a document; nodes count each use of an alias
MOST_CHARACTERS = {"text": 10_000, "key": 200, "number": 60}

WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{sign + dot: float(sign + dot[1:]) for sign in ("", "+", "-") for dot in (".inf", ".Inf", ".INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_NUMERIC = re.compile(  # what some version of YAML takes for a number
    r"[-+]?(0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"
    r"|([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9_]+)?)"
)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # only its parser is used


def plain_word(text: str) -> Any:
    """The value of a scalar without quotes. Raises ValueError for a number that YAML versions read differently."""
    if text in WORDS:
        return WORDS[text]
    if not _NUMERIC.fullmatch(text):
        return text
    if len(text) > MOST_CHARACTERS["number"]:
        raise ValueError(f"a number of {len(text):,} characters, {shortened(text, 20)}")
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    raise ValueError(f"YAML readers disagree on '{text}': write it in plain decimals, or a text in quotes")


def read_yaml(text: str) -> Any:
    """A document as plain containers. Raises ValueError, with the line, for all that is not in the dialect."""
    if len(text) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES / 2**20:.0f} MiB of text")
    try:
        events = yaml.parse(str(text), Loader=_LOADER)
        next(events)  # the start of the stream
        if isinstance(next(events), yaml.StreamEndEvent):
            return None
        value = _Reader(events).node(next(events))
        next(events)  # the end of the document
        if not isinstance(event := next(events), yaml.StreamEndEvent):
            raise _error(event, "a second document begins; a file has one")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:  # a character that no YAML may have
        raise ValueError(" ".join(str(error).split())) from None
    return value


def _error(event: Any, message: str) -> ValueError:
    return ValueError(f"line {event.start_mark.line + 1}: {message}")


class _Reader:
    """Builds containers from the events of a parser."""

    def __init__(self, events: Iterator[Any]):
        self.events = events
        self.anchors: dict[str, tuple[Any, int]] = {}  # value and number of nodes
        self.nodes = 0

    def node(self, event: Any, depth: int = 0) -> Any:
        before, alias = self.nodes, isinstance(event, yaml.AliasEvent)
        if alias and event.anchor not in self.anchors:
            raise _error(event, f"*{shortened(event.anchor)} refers to nothing that ends before it")
        self.nodes += self.anchors[event.anchor][1] if alias else 1
        if self.nodes > MOST_NODES:
            raise _error(event, f"more than {MOST_NODES:,} values; each use of an alias counts")
        if depth > MOST_DEPTH:
            raise _error(event, f"more than {MOST_DEPTH} levels of nesting")
        if alias:
            return self.anchors[event.anchor][0]
        if event.tag is not None:
            raise _error(event, f"tag '{shortened(event.tag)}': tags are not allowed; leave it out, or quote a text")
        if isinstance(event, yaml.ScalarEvent):
            value: Any = self.scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(inner := next(self.events), yaml.SequenceEndEvent):
                value.append(self.node(inner, depth + 1))
        else:
            value = self.mapping(depth + 1)
        if event.anchor is not None:
            self.anchors[event.anchor] = value, self.nodes - before
        return value

    def mapping(self, depth: int) -> dict[Any, Any]:
        value: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.node(event, depth)
            if isinstance(key, (dict, list)):
                raise _error(event, "a key must be a text")
            if len(str(key)) > MOST_CHARACTERS["key"]:
                raise _error(event, f"a key of {len(key):,} characters, {shortened(key)}")
            if not str(key).isprintable():
                raise _error(event, f"a key with control characters, {key!r}")
            merge = key == "<<" and getattr(event, "implicit", "")[:1] == (True,)
            if key in value or (merge and merged):
                raise _error(event, f"duplicate key {key}; leave one of them out")
            found = self.node(next(self.events), depth)
            if not merge:
                value[key] = found
                continue
            for block in reversed(found if isinstance(found, list) else [found]):
                if not isinstance(block, dict):
                    raise _error(event, "<< merges blocks only")
                merged |= block
        return {**merged, **value}

    def scalar(self, event: Any) -> Any:
        if len(event.value) > MOST_CHARACTERS["text"]:
            raise _error(event, f"a text of {len(event.value):,} characters, {shortened(event.value)}")
        try:
            return plain_word(event.value) if event.implicit[0] else event.value
        except ValueError as error:
            raise _error(event, str(error)) from None


class Typed(str):
    """The value of an override as it was typed: a field of type text takes it so, any other reads it as YAML."""

    def as_yaml(self) -> Any:
        """Raises ValueError."""
        return read_yaml(self)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that ``plain_word`` would not return as it is."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = "'" if _NUMERIC.fullmatch(text) or text in WORDS else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def to_yaml(tree: dict[str, Any]) -> str:
    """Plain containers as YAML that ``read_yaml`` reads back, keys in the order given, tuples as lists."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True).rstrip()
