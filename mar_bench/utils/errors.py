"""The one exception that users see as a line, not as a traceback."""

from __future__ import annotations

import traceback


class UserError(ValueError):
    """Bad input: the message names the file and the key and says the way out. The CLI exits with 2."""


def did_you_mean(word: str, known) -> str:
    """A hint for a misspelt word, or the list of what is known."""
    import difflib

    known = [str(k) for k in known]
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(known))}"


def described(error: Exception) -> str:
    """What a failed record and a report say of an error: its line, and the traceback of what is no user's mistake."""
    if isinstance(error, UserError):
        return str(error)
    first = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {first}\n{''.join(traceback.format_exception(error))}"


class Stopped(BaseException):
    """Raised inside a stage when the work is to stop; not an Exception, so that no handler swallows it."""


class Superseded(Stopped):
    """A newer start of the same job has the work: leave everything as it is, and write nothing more."""
