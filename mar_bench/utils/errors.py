"""Exceptions: user errors, reported in one line, and requests to stop."""

from __future__ import annotations

import traceback
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: the message names the file, the key and the fix. The CLI prints it and exits with 2."""


class DiskError(UserError, OSError):
    """The disk is full, read-only or gone: the work that was to be written has not failed, and stops."""


def shortened(text: str, most: int = 80) -> str:
    """A text for a message: on one line, cut to ``most`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def shown(value: object) -> str:
    """A value for a message, as Python writes it, cut."""
    try:
        return shortened(repr(value))
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of thousands of digits"


def did_you_mean(word: object, known: Iterable[object]) -> str:
    """A hint for a misspelt word: the closest known one, or all of them."""
    import difflib

    words = [str(k) for k in known]
    close = difflib.get_close_matches(str(word), words, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {shortened(', '.join(sorted(words)), 1000)}"


def some(names: Iterable[object]) -> str:
    """The first dozen names. They come from files: unprintable ones are shown as Python literals."""
    shown = [str(name) if str(name).isprintable() else repr(name) for name in names]
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")


def described(error: Exception) -> str:
    """An error as stored in failed records: its message, and the traceback unless it is a UserError."""
    if isinstance(error, UserError):
        return str(error)
    first = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {first}\n{''.join(traceback.format_exception(error))}"


class Stopped(BaseException):
    """Raised inside a stage to stop it; a BaseException, as ``except Exception`` must not swallow it."""


class Superseded(Stopped):
    """A newer start of the same job has taken over: write nothing more."""
