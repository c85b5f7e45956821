"""The command line: one function per command. ``options`` has what commands share, ``pipeline`` does the work.

Hyperparameters have no flags: override any field of a spec as key=value. torch and pandas are imported inside
the commands that need them, never when this package is imported."""

from __future__ import annotations

import gc
import io
import os
import sys
from typing import Any

import typer

from mar_bench.cli import cluster, experiments, metrics, speed, views, weights  # noqa: F401, each adds its commands
from mar_bench.cli.options import app
from mar_bench.utils.console import printable
from mar_bench.utils.errors import UserError

UsageError: Any = typer.BadParameter.__mro__[1]  # of the click that typer uses, which may be its own


def main() -> None:
    """Entry point: bad input gives one line and exit code 2."""
    gc.set_threshold(50_000)  # specs and records have no cycles: the usual collections take a fifth of plan's time
    sys.stdout = sys.stdout or sys.stderr  # None if the shell has closed it
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # on a terminal without UTF-8 a result is shown with escapes
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()  # here, as an error at the interpreter's end would come too late to be told
        sys.exit(code if isinstance(code, int) else 0)
    except typer.Abort:
        sys.exit(130)
    except UsageError as error:
        message, command = error.format_message(), error.ctx.command_path if error.ctx else "mar-bench"
        is_help = "\n" in message  # no command is given
        print(message if is_help else f"error: {printable(message)} ({command} --help)", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of the pipe, such as head, has exited
        _drop_output()
        sys.exit(0)
    except OSError as error:  # a folder that cannot be written, a full disk
        text = f"{error.filename or 'input or output'}: {error.strerror or error}"
        print(f"error: {printable(text)}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _drop_output() -> None:
    """Discard what cannot be written, or the interpreter complains again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
