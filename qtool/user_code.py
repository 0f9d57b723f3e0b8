"""Functions of the user that a recipe names as ``module:function``.

They run only where ``--trust-code`` was given. What they print goes to stderr: stdout is for
results.
"""

import importlib
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from qtool.errors import DataError, QtoolError, RecipeError, suggest

_INSTALLED = (sys.prefix, sys.base_prefix)
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_function_name(text: str) -> bool:
    """Return whether a text has the form ``module:function``, dots allowed in both."""
    return _NAME.fullmatch(text) is not None


def torch_network_needs(function: str, weights: str) -> str:
    """Return what a recipe has to say of a torch network, as messages end.

    Args:
        function: ``module:function`` that makes the network.
        weights: path of its weights.
    """
    section = f'{{torch: "{function}", weights: {weights}, input: {{x: [N, 3, 224, 224]}}}}'
    return (
        f"write a recipe with model: {section}, the names and sizes of its inputs, and add "
        "--trust-code, since it runs code"
    )


def load_function(
    name: str,
    folder: str | None,
    *,
    trusted: bool,
    key: str,
    kind: type[QtoolError] = DataError,
) -> Callable[..., Any]:
    """Import the function a recipe names.

    Args:
        name: ``module:function``.
        folder: searched before sys.path; the recipe's own.
        trusted: True where the user allowed code with ``--trust-code``.
        key: the recipe's key, for messages.
        kind: of error.

    Raises:
        RecipeError: the user did not give ``--trust-code``.
        QtoolError: of the kind; there is no such module or function, or importing it fails.
    """
    if not is_function_name(name):
        raise kind(f"{key}: found {name!r}, expected module:function, such as mine:batches")
    if not trusted:
        raise RecipeError(
            f"{key}: {name} is code that would run on this machine; expected your consent: read "
            "it, then add --trust-code"
        )
    place, _, attribute = name.partition(":")
    with guarded(f"{key}: importing {place}", kind):
        value = _import(place, folder, key, kind)
    for part in attribute.split("."):
        if not hasattr(value, part):
            names = [name for name in vars(value) if not name.startswith("_")]
            raise kind(
                f"{key}: {place} ({getattr(value, '__file__', 'built in')}) has no `{part}`"
                f"{suggest(part, names)}; expected a function: correct the name"
            )
        value = getattr(value, part)
    if not callable(value):
        raise kind(f"{key}: {name} is a {type(value).__name__}; expected a function")
    return value


def _import(place: str, folder: str | None, key: str, kind: type[QtoolError]) -> Any:
    """Import a module, from ``folder`` where it is in there."""
    top = place.partition(".")[0]
    importlib.invalidate_caches()
    in_folder = folder is not None and PathFinder.find_spec(top, [folder]) is not None
    if in_folder:
        _forget_namesake(top, Path(str(folder)), key, kind)
        sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise
        raise kind(
            f"{key}: there is no module {error.name}; expected it in {folder} or on sys.path "
            "(PYTHONPATH): correct the name, or install it"
        ) from error
    finally:
        if in_folder:  # at the end of sys.path: later imports of the module work, and hide no other
            if str(folder) in sys.path:
                sys.path.remove(str(folder))
            if str(folder) not in sys.path:
                sys.path.append(str(folder))


def _forget_namesake(top: str, folder: Path, key: str, kind: type[QtoolError]) -> None:
    """Drop a module of the same name that an earlier recipe imported from another folder."""
    module = sys.modules.get(top)
    if module is None:
        return
    origin = getattr(module, "__file__", None)
    if origin is not None and Path(origin).is_relative_to(folder):
        return
    installed = [*map(Path, _INSTALLED), Path(__file__).parent]
    if origin is None or any(Path(origin).is_relative_to(place) for place in installed):
        raise kind(
            f"{key}: {top} in {folder} has the name of a module that is already in use "
            f"({origin or 'built in'}); expected a name of its own: rename the file"
        )
    for name in [name for name in sys.modules if name == top or name.startswith(f"{top}.")]:
        del sys.modules[name]


@contextmanager
def isolated_imports(folder: Path | None) -> Iterator[None]:
    """Restore ``sys.modules`` and ``sys.path`` after the block.

    For code that is needed only while the block runs: modules that it imported from ``folder`` are
    dropped, and those of the same name that they replaced are restored.

    Args:
        folder: of the user's modules; None: no module is dropped.
    """
    modules, path = dict(sys.modules), list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - set(modules):
            file = getattr(sys.modules[name], "__file__", None)
            if folder is None or not isinstance(file, str):
                continue
            if Path(file).is_relative_to(folder) and "site-packages" not in Path(file).parts:
                del sys.modules[name]
        sys.modules.update(modules)


@contextmanager
def guarded(what: str, kind: type[QtoolError] = DataError) -> Iterator[None]:
    """Run code of the user: send its print to stderr, convert its exceptions to one sentence.

    Args:
        what: is being done, for the message.
        kind: of error.

    Raises:
        QtoolError: of the kind, naming the file and line of the user's code.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except QtoolError:
        raise
    except (Exception, SystemExit) as error:
        lines = str(error).strip().splitlines()
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        raise kind(
            f"{what}: {_place(error)}raised {type(error).__name__}: "
            f"{lines[0] if lines else 'no message'}; expected it to finish: "
            + (f"install {missing}" if missing else "correct your code")
        ) from error


def guarded_items(items: Iterable[Any], what: str) -> Iterator[Any]:
    """Yield the items of the user's iterable, each step under :func:`guarded`.

    Args:
        items: of the user.
        what: is being done, for messages.

    Raises:
        DataError: the user's code raised, naming its file and line.
    """
    with guarded(what):
        steps = iter(items)
    end = object()
    try:
        while True:
            with guarded(what):
                item = next(steps, end)
            if item is end:
                return
            yield item
    finally:
        close = getattr(steps, "close", None)
        if close is not None:
            with guarded(what):
                close()


def _place(error: BaseException) -> str:
    """Return ``file:line `` of the user's innermost frame, or of a syntax error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno} "
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<", str(Path(__file__).parent)))
    ]
    own = [frame for frame in frames if not frame.filename.startswith(_INSTALLED)] or frames
    return f"{own[-1].filename}:{own[-1].lineno} " if own else ""
