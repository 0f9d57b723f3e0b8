"""Exit codes of commands, from the errors that end them."""

import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from json import dumps
from typing import TYPE_CHECKING

import typer

from qtool.errors import (
    QtoolError,
    RecipeError,
    dotted,
    is_out_of_memory,
    out_of_memory,
    storage_error,
)
from qtool.version import __version__

if TYPE_CHECKING:
    from qtool.report.report import Report

PASSED = 0
GATE_FAILED = 1
BUG = 70
INTERRUPTED = 130


@contextmanager
def exit_codes(json: bool = False) -> Iterator[None]:
    """Convert every exception of a command to its exit code, with a message on stderr.

    Args:
        json: print the user's errors as one JSON object on stdout too.

    Raises:
        typer.Exit: 2 or 3 for the user's errors, 130 for SIGINT and SIGTERM, 70 for a bug, whose
            traceback is saved.
    """
    try:
        yield
    except typer.Exit:
        raise
    except QtoolError as error:
        raise _user_error(error, json) from error
    except KeyboardInterrupt as error:
        _print_error(": ".join(["interrupted", *map(str, error.args)]))
        raise typer.Exit(INTERRUPTED) from error
    except OSError as error:
        refusal = storage_error(error)
        raise (_bug(error) if refusal is None else _user_error(refusal, json)) from error
    except Exception as error:
        if not is_out_of_memory(error):
            raise _bug(error) from error
        lines = str(error).strip().splitlines()
        reason = out_of_memory(lines[0] if lines else type(error).__name__)
        raise _user_error(reason, json) from error


def _user_error(error: QtoolError, json: bool) -> typer.Exit:
    """Print an error of the user, and return the exit that it ends the command with."""
    _print_error(f"error: {error}")
    if json:
        print_result(error_json(error))
    return typer.Exit(error.exit_code)


def error_json(error: QtoolError) -> str:
    """Return an error as one JSON object; keys without a value are absent.

    ``{"error": {"file": "r.yaml", "line": 3, "key": "bits.weights", "message": "..."}}``

    Args:
        error: of the user; only errors about a recipe have a file, a line and a key, or the option
            that set the key.
    """
    fields: dict[str, str | int] = {}
    if isinstance(error, RecipeError):
        file, _, line = error.place.rpartition(":")
        if line.isdecimal():
            fields |= {"file": file, "line": int(line)}
        elif error.place:
            fields["option" if error.place.startswith("--") else "file"] = error.place
        if error.key:
            fields["key"] = dotted(error.key)
    return dumps({"error": {**fields, "message": str(error)}}, ensure_ascii=False)


def exit_code(report: "Report", strict: bool = False) -> int:
    """Return 1 where a gate failed, else 0.

    Args:
        report: of a run.
        strict: 1 also for every verdict other than passed.
    """
    from qtool.report.verdict import verdict

    if report.passed is False or (strict and verdict(report).status != "passed"):
        return GATE_FAILED
    return PASSED


def print_result(text: str) -> None:
    """Write a command's result to stdout; a closed pipe (``| head``) is no error."""
    try:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def printable(text: str) -> str:
    """Replace what a terminal could act on in names of models and files; line ends stay.

    Args:
        text: of one or several lines, without colours.
    """
    from qtool.report.render.formatting import clean

    return "\n".join(map(clean, text.split("\n")))


def _bug(error: Exception) -> typer.Exit:
    """Save the traceback in a file, name the file, and return exit code 70."""
    lines = [
        f"qtool {__version__}, Python {platform.python_version()}, {platform.platform()}",
        "command: " + " ".join(sys.argv),
        "",
        *traceback.format_exception(error),
    ]
    text = "\n".join(lines)
    summary = f"{type(error).__name__}: {error}"
    try:
        handle, path = tempfile.mkstemp(prefix="qtool-bug-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        _print_error(
            f"{text}\nthis is a bug in qtool ({summary}); please report it with the lines above"
        )
    else:
        _print_error(
            f"this is a bug in qtool ({summary}); please report it with the traceback in {path}"
        )
    return typer.Exit(BUG)


def _print_error(text: str) -> None:
    print(f"qtool: {printable(text)}", file=sys.stderr)
