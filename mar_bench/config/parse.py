"""Plain containers -> frozen dataclasses, strictly: an unknown key or kind, a wrong type or a number out of range is an
error. Ranges and lists of known words are part of the types (``Count``, ``OneOf``). The upper ends of ranges are far
above any use: a number beyond them is a slip."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal, Union

from mar_bench.config import plugins
from mar_bench.utils.errors import UserError, did_you_mean, shown
from mar_bench.utils.files import expanded
from mar_bench.utils.yaml_text import Typed


class KeyPathError(Exception):
    """A bad key or value in a tree: its dotted path and the problem, raised by code that does not know the file."""

    def __init__(self, path: str, message: str):
        super().__init__(f"{path}: {message}" if path else message)
        self.path, self.message = path, message


@dataclass(frozen=True)
class Rule:
    """A condition on a value besides its type; ``text`` states it in words."""

    text: str
    holds: Callable[[Any], bool]

    def complaint(self, value: Any) -> str | None:
        return None if self.holds(value) else f"{shown(value)} {self.text}"


@dataclass(frozen=True)
class OneOf:
    """The words allowed in a text field, with those that ``more`` gives; ``what`` names one of them in messages."""

    what: str
    known: tuple[str, ...]
    more: Callable[[], Iterable[str]] = tuple

    def complaint(self, value: Any) -> str | None:
        if value in self.known or value in (known := (*self.known, *self.more())):
            return None
        return f"no {self.what} {shown(value)}, {did_you_mean(value, known)}"


@dataclass(frozen=True)
class LocalPath:
    """Marks a path of this machine: ``~`` and variables are expanded when it is parsed."""


def between(low: float, high: float) -> Rule:
    """A range with both ends included."""
    ends = [f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (low, high)]
    return Rule(f"must lie between {ends[0]} and {ends[1]}", lambda x: low <= x <= high)


NOT_EMPTY = Rule("must not be empty", bool)
FilePath = Annotated[str, LocalPath()]
Line = Annotated[str, Rule("must be one line of at most 300 characters", lambda s: len(s) <= 300 and s.isprintable())]
_WORD = "must be a text of one line or a whole number, which print as they are written: put it in quotes"
Word = Annotated[Any, Rule(_WORD, lambda v: type(v) is int or (type(v) is str and len(v) <= 300 and v.isprintable()))]
Name = Annotated[str, Rule("must have 1 to 200 printable characters", lambda s: 0 < len(s) <= 200 and s.isprintable())]
Identifier = Annotated[str, Rule("may have letters, digits, _ and - only", re.compile(r"[\w-]{1,100}\Z").match)]
Count = Annotated[int, between(1, 10**9)]  # steps, images
CountOrZero = Annotated[int, between(0, 10**9)]
TwoOrMore = Annotated[int, between(2, 10**9)]
Batch = Annotated[int, between(1, 10**6)]
_AUTO = Rule(
    "must be auto or lie between 1 and 1,000,000", lambda n: n == "auto" or (type(n) is int and 1 <= n <= 10**6)
)
BatchOrAuto = Annotated[Any, _AUTO]
Few = Annotated[int, between(1, 10_000)]  # layers, heads, repeats, subsets
Width = Annotated[int, between(1, 2**16)]  # of images, layers and tokens
Codes = Annotated[int, between(2, 2**20)]
Seed = Annotated[int, Rule("must lie between 0 and 2^63 - 1", lambda n: 0 <= n < 2**63)]
Positive = Annotated[float, between(1e-6, 1e6)]
NotNegative = Annotated[float, between(0, 1000)]
Rate = Annotated[float, between(1e-9, 10.0)]
Fraction = Annotated[float, Rule("must lie in [0, 1)", lambda x: 0 <= x < 1)]
Share = Annotated[float, between(0, 1)]


def unhashed(default: Any) -> Any:
    """A field that does not determine the output: paths, threads, devices, checkpoint intervals."""
    return field(default=default, metadata={"unhashed": True})


def view(default: Any) -> Any:
    """A field of a tokenizer that affects how its output becomes tokens, not its weights and reconstructions."""
    return field(default=default, metadata={"view": True})


EXTENSIBLE: dict[frozenset[type], str] = {}  # the members of a union -> what plugins call its parts


def extensible(union: Any, part: str) -> None:
    """Let plugins add to a union of blocks."""
    EXTENSIBLE[frozenset(typing.get_args(union))] = part


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields, with their rules."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in fields(cls)}


def parse(expected: Any, value: Any, path: str = "") -> Any:
    """``value`` as an instance of the type ``expected``: dataclass, union of kinds, Literal, tuple, dict or scalar.

    Raises KeyPathError."""
    if expected is str and type(value) is str:  # most values of large submissions
        return value
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any:
        return value
    if isinstance(value, Typed):
        value = _as_meant(expected, value, path)
    if origin is Annotated:
        found = parse(args[0], value, path)
        for rule in args[1:]:
            if isinstance(rule, LocalPath):
                found = expanded(found, path)
            elif complaint := rule.complaint(found):
                raise KeyPathError(path, complaint)
        return found
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        members = [a for a in args if a is not type(None)]
        return parse(members[0] if len(members) == 1 else _kind_of(members, value, path), value, path)
    if isinstance(expected, type) and is_dataclass(expected):
        return _parse_dataclass(expected, value, path)
    if origin is Literal:
        if value not in args:
            raise KeyPathError(path, f"{shown(value)} is not one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        open_ended = Ellipsis in args
        if not isinstance(value, (list, tuple)) or not (open_ended or len(value) == len(args)):
            length = "" if open_ended else f" of {len(args)} values"
            raise KeyPathError(path, f"expected a list{length}, found {shown(value)}")
        args = args[:1] * len(value) if open_ended else args
        return tuple(parse(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value)))
    if origin is dict:
        check_keys(path, value)
        return {parse(args[0], key, join(path, key)): parse(args[1], v, join(path, key)) for key, v in value.items()}
    return _parse_scalar(expected, value, path)


def _as_meant(expected: Any, value: Typed, path: str) -> Any:
    """An override as it was typed where a text is expected, else as YAML. ``null`` unsets a text that may be unset."""
    inner = _alternatives(expected)
    if str in inner and not (value == "null" and type(None) in inner):
        return str(value)
    try:
        return value.as_yaml()
    except ValueError as error:
        raise KeyPathError(path, str(error).removeprefix("line 1: ")) from None


def _alternatives(expected: Any) -> list[Any]:
    """The types that a union or an annotated type allows."""
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin is Annotated:
        return _alternatives(args[0])
    return [t for a in args for t in _alternatives(a)] if origin in (Union, types.UnionType) else [expected]


def _parse_scalar(expected: type, value: Any, path: str) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if expected is int and number and value == int(value):
        return int(value)
    if expected is float and number:
        return float(value) + 0.0  # -0.0 becomes 0.0, in ids too
    if expected in (bool, str) and type(value) is expected:
        return value
    names = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}
    quote = "; put it in quotes" * (expected is str and isinstance(value, (int, float)))
    raise KeyPathError(path, f"expected {names[expected]}, found {shown(value)}{quote}")


def _kind_of(members: list[Any], value: Any, path: str) -> type:
    """The dataclass among ``members`` that a block's ``kind`` names; an ``assumed`` one is the default."""
    kinds = {m.kind: m for m in members}
    given = value.get("kind", "") if isinstance(value, dict) else ""
    if (part := EXTENSIBLE.get(frozenset(members))) and isinstance(given, str) and given not in kinds:
        kinds = {**plugins.specs(part), **kinds}
    if not isinstance(value, dict):
        raise KeyPathError(path, f"expected a block with a kind ({', '.join(kinds)}), found {shown(value)}")
    assumed = next((kind for kind, member in kinds.items() if getattr(member, "assumed", False)), None)
    kind = value.get("kind", assumed)
    if not isinstance(kind, str) or kind not in kinds:
        raise KeyPathError(join(path, "kind"), f"unknown kind {shown(kind)}, {did_you_mean(kind, kinds)}")
    return kinds[kind]


def _parse_dataclass(cls: type, value: Any, path: str) -> Any:
    known = field_types(cls)
    check_keys(path, value, known, f" of kind '{cls.kind}'" if hasattr(cls, "kind") else "")
    found = {key: parse(known[key], v, join(path, key)) for key, v in value.items()}
    for f in fields(cls):
        if f.name not in found and f.default is f.default_factory is dataclasses.MISSING:
            raise KeyPathError(join(path, f.name), "is missing")
    return cls(**found)


def check_keys(path: str, tree: Any, known: Collection[str] | None = None, where: str = "") -> None:
    """Raises KeyPathError if ``tree`` is not a block, or if a key is not a text or not in ``known``."""
    if not isinstance(tree, dict):
        raise KeyPathError(path, f"expected a block of keys, found {shown(tree)}")
    for key in tree:
        if not isinstance(key, str):
            raise KeyPathError(join(path, str(key)), "a key must be a text; put it in quotes")
        if known is not None and key not in known:
            hint = _one_level_down(key, known) or did_you_mean(key, known)
            raise KeyPathError(join(path, key), f"unknown key '{key}'{where}, {hint}")


def _one_level_down(key: str, known: Collection[str]) -> str:
    """A hint for a key without the name of its block: ``train.lr`` for ``lr``. Empty if no block has it."""
    blocks = known.items() if isinstance(known, dict) else ()
    names = [f"'{name}.{key}'" for name, block in blocks for t in _alternatives(block) if _has_field(t, key)]
    return f"did you mean {' or '.join(dict.fromkeys(names))}?" if names else ""


def _has_field(block: Any, key: str) -> bool:
    return is_dataclass(block) and key in field_types(block)  # type: ignore[arg-type]


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def as_tree(block: Any) -> dict:
    """A spec as plain containers, every field written out."""
    return dataclasses.asdict(block)


def overlay(base: Any, over: Any) -> Any:
    """Merge ``over`` onto ``base``, recursively; a mapping that changes ``kind`` replaces the old one."""
    if isinstance(over, dict) and isinstance(base, str) and base.startswith("${") and "kind" not in over:
        message = f"'{base}' is a whole block, and a later layer merges {shown(over)} into it"
        raise UserError(f"{message}; refer to its keys one by one")
    if isinstance(over, Typed) and isinstance(base, dict):
        with contextlib.suppress(ValueError):  # parse reports it, with its path
            over = over.as_yaml()
    if not (isinstance(base, dict) and isinstance(over, dict)) or over.get("kind", base.get("kind")) != base.get(
        "kind"
    ):
        return over
    return {**base, **{key: overlay(base.get(key), value) for key, value in over.items()}}
