"""Identify a run before it starts, by recipe, options, and the files that it reads."""

import hashlib
import os
from functools import cache
from glob import escape
from pathlib import Path

from qtool.files import MAPPED_BYTES, digest_of
from qtool.pipeline.context import RunOptions
from qtool.recipe.model import Recipe
from qtool.recipe.validation import named_files
from qtool.version import __version__


def run_identity(command: str, recipe: Recipe, options: RunOptions) -> str:
    """Return a digest that two runs share where they would write the same files.

    Args:
        command: such as ptq.
        recipe: as it was read, paths absolute.
        options: of the run; those that change no result do not count.
    """
    content = recipe.model_dump_json(exclude={"memory"})
    parts = [command, __version__, content, str(options.seed), options.device]
    parts += [str(options.threads), str(options.requantize)]
    parts += ["" if options.baseline is None else options.baseline.output.sha256]
    state = cache(fingerprint)  # calibration, evaluation and training often share a folder
    paths = [(key[-1] == "code", Path(file)) for key, file in named_files(recipe)]
    paths += [] if options.plan_file is None else [(False, options.plan_file)]
    for is_code, path in paths:
        parts += modules(path) if is_code else state(path)
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()


def fingerprint(path: Path) -> list[str]:
    """Return lines that differ for two states of a file or folder.

    Small files count by their content; large ones, and those in a folder, by name, size and time of
    change. Weights beside an ONNX file (``net.onnx.data``) count too.

    Args:
        path: a file or a folder.
    """
    if path.is_dir():
        lines = []
        for folder, _, names in os.walk(path):
            inner = os.path.relpath(folder, path)
            start = "" if inner == "." else f"{inner}/"
            lines += [f"{start}{name} {_state(os.path.join(folder, name))}" for name in names]
        return sorted(lines)
    files = sorted(path.parent.glob(f"{escape(path.name)}*"))
    return [f"{file.name} {_content(file)}" for file in files]


def modules(folder: Path) -> list[str]:
    """Return the state of the Python files that lie directly in a folder of the user's own code."""
    return [f"{file.name} {_content(file)}" for file in sorted(folder.glob("*.py"))]


def _content(file: Path) -> str:
    if file.is_dir() or file.stat().st_size > MAPPED_BYTES:
        return _state(file)
    return digest_of([file])


def _state(file: Path | str) -> str:
    facts = os.lstat(file)
    return f"{facts.st_size} {facts.st_mtime_ns}"
