"""Plain containers -> frozen dataclasses, strictly: an unknown key, kind or a value of another type is an error."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union

from mar_bench.utils.errors import UserError, did_you_mean


class KeyPathError(Exception):
    """A bad key or value inside a tree: its dotted path and what is wrong, before the file is known."""

    def __init__(self, path: str, message: str, value: Any = None):
        super().__init__(message)
        self.path, self.message, self.value = path, message, value


def parse(expected: Any, value: Any, path: str = "") -> Any:
    """``value`` as an instance of the type ``expected``: dataclass, union of kinds, Literal, tuple or scalar."""
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        members = [a for a in args if a is not type(None)]
        if all(is_dataclass(m) for m in members):
            return parse(_kind_of(members, value, path), value, path)
        return parse(members[0], value, path)
    if is_dataclass(expected):
        return _parse_dataclass(expected, value, path)
    if origin is Literal:
        if value not in args:
            raise KeyPathError(path, f"'{value}' is not one of {', '.join(map(str, args))}", value)
        return value
    if origin is tuple:
        listed, open_ended = isinstance(value, (list, tuple)), Ellipsis in args
        if not listed or not (open_ended or len(value) == len(args)):
            length = "" if open_ended else f" of {len(args)} values"
            raise KeyPathError(path, f"expected a list{length}, found {value!r}", value)
        args = args[:1] * len(value) if open_ended else args
        return tuple(parse(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value)))
    if origin is dict:
        if not isinstance(value, dict):
            raise KeyPathError(path, f"expected a block of keys, found {value!r}", value)
        return {str(key): parse(args[1], v, join(path, key)) for key, v in value.items()}
    if expected is Any:
        return value
    return _parse_scalar(expected, value, path)


def _parse_scalar(expected: type, value: Any, path: str) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if expected is int and number and value == int(value):
        return int(value)
    if expected is float and number:
        return float(value) + 0.0  # so that -0.0 is 0.0, in ids too
    if expected in (bool, str) and type(value) is expected:
        return value
    names = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}
    raise KeyPathError(path, f"expected {names[expected]}, found {value!r}", value)


def _kind_of(members: list[type], value: Any, path: str) -> type:
    kinds = {m.kind: m for m in members}
    if not isinstance(value, dict):
        raise KeyPathError(path, f"expected a block with a kind ({', '.join(kinds)}), found {value!r}", value)
    assumed = next((kind for kind, member in kinds.items() if getattr(member, "assumed", False)), None)
    kind = value.get("kind", assumed)
    if kind not in list(kinds):
        raise KeyPathError(join(path, "kind"), f"unknown kind '{kind}', {did_you_mean(kind, kinds)}", kind)
    return kinds[kind]


def _parse_dataclass(cls: type, value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise KeyPathError(path, f"expected a block of keys, found {value!r}", value)
    hints = typing.get_type_hints(cls)
    known = {f.name: hints[f.name] for f in fields(cls)}
    for key in value:
        if key not in known:
            where = f" of kind '{cls.kind}'" if hasattr(cls, "kind") else ""
            raise KeyPathError(join(path, key), f"unknown key '{key}'{where}, {did_you_mean(key, known)}")
    for f in fields(cls):
        if f.name not in value and f.default is f.default_factory is dataclasses.MISSING:
            raise KeyPathError(path, f"key '{f.name}' is missing")
    return cls(**{key: parse(known[key], v, join(path, key)) for key, v in value.items()})


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else str(key)


def as_tree(block: Any) -> dict:
    """A spec as plain containers, every field written out."""
    return dataclasses.asdict(block)


def overlay(base: Any, over: Any) -> Any:
    """``over`` laid on ``base``, recursively; a mapping that changes ``kind`` replaces the old one."""
    if isinstance(over, dict) and isinstance(base, str) and base.startswith("${") and "kind" not in over:
        raise UserError(
            f"'{base}' is a whole block, and a later layer lays {over} over it; refer to its keys one by one"
        )
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    if "kind" in over and over["kind"] != base.get("kind"):
        return over
    return {**base, **{key: overlay(base.get(key), value) for key, value in over.items()}}
