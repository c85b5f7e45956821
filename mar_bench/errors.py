"""The one exception that users see as a line, not as a traceback."""


class UserError(ValueError):
    """Bad input: the message names the file and the key and says the way out. The CLI exits with 2."""


def did_you_mean(word: str, known) -> str:
    """A hint for a misspelt word, or the list of what is known."""
    import difflib

    known = [str(k) for k in known]
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(known))}"
