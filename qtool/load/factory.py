"""A torch module from the user's own code: ``module:factory``."""

import importlib
import importlib.machinery
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from qtool.errors import ModelError, suggest


def import_factory(name: str, folder: Path | None) -> tuple[Any, tuple[Path, ...]]:
    """Import the module and find the factory in it. Runs the module's code.

    Args:
        name: ``package.module:factory``.
        folder: where the module is looked for before ``sys.path``.

    Returns:
        The factory, and the source files that importing it read: the module and what it imports
        from beside it.

    Raises:
        ModelError: no such module or factory, or importing it fails.
    """
    where, _, attribute = name.partition(":")
    if not where or not attribute:
        raise ModelError(f'torch: found "{name}", expected "module:factory"')
    with _importable(folder):
        module = _imported(where, folder)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [
                k for k in vars(module) if not k.startswith("_") and callable(getattr(module, k))
            ]
            raise ModelError(
                f'torch: "{where}" ({module.__file__}) has no "{attribute}"'
                f"{suggest(attribute, known)}; expected a function that returns the network"
            )
        found = getattr(found, part)
    if not callable(found):
        raise ModelError(
            f'torch: "{name}" is a {type(found).__name__}, expected a function that returns the '
            "network"
        )
    return found, _sources(where, module)


def build(name: str, factory: Any, folder: Path | None) -> nn.Module:
    """Call the factory.

    Raises:
        ModelError: it fails, or returns no ``nn.Module``.
    """
    try:
        with _importable(folder):
            module = factory()
    except (Exception, SystemExit) as error:
        raise ModelError(
            f'torch: calling "{name}()" failed: {_told(error)}; expected it to return the network'
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(
            f'torch: "{name}()" returned a {type(module).__name__}, expected a torch.nn.Module'
        )
    return module


def _imported(where: str, folder: Path | None) -> ModuleType:
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if where == missing or where.startswith(f"{missing}."):
            places = f'"{folder}" or on the Python path' if folder else "the Python path"
            raise ModelError(
                f'torch: no module "{missing}" in {places}; put its file there, or name its '
                "folder: `path: DIR`"
            ) from error
        raise ModelError(
            f'torch: importing "{where}" failed: it needs "{missing}"; install it'
        ) from error
    except (Exception, SystemExit) as error:
        raise ModelError(f'torch: importing "{where}" failed: {_told(error)}') from error


def _told(error: BaseException) -> str:
    """The error in one line, with the place in the user's file."""
    lines = str(error).strip().splitlines()
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
    if isinstance(error, SyntaxError) and error.filename:
        place = f" ({error.filename}:{error.lineno})"
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}{place}"


@contextmanager
def guest_modules(name: str, folder: Path | None) -> Iterator[None]:
    """Leave ``sys.modules`` as it was: the user's modules from ``folder`` stay for the block only.

    A module of the same name that came from elsewhere steps aside meanwhile.
    """
    top = name.partition(":")[0].partition(".")[0]
    spec = None
    if folder is not None:
        spec = importlib.machinery.PathFinder.find_spec(top, [str(folder)])
    file = getattr(sys.modules.get(top), "__file__", None)
    ours = isinstance(file, str) and "site-packages" not in file
    hidden = {}
    if spec is not None and ours and file != spec.origin and top not in sys.stdlib_module_names:
        for other in [k for k in sys.modules if k == top or k.startswith(f"{top}.")]:
            hidden[other] = sys.modules.pop(other)
    before = set(sys.modules)
    try:
        yield
    finally:
        for other in set(sys.modules) - before:
            file = getattr(sys.modules[other], "__file__", None)
            path = Path(file) if isinstance(file, str) else None
            if path is None or folder is None or not path.is_relative_to(folder):
                continue
            if "site-packages" not in path.parts:
                del sys.modules[other]
        sys.modules.update(hidden)


@contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    """Let ``folder`` be looked at first, for as long as the block runs."""
    if folder is None:
        yield
        return
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def _sources(where: str, module: ModuleType) -> tuple[Path, ...]:
    """Source files loaded from the folder that the module, or its package, lies in."""
    top = sys.modules.get(where.partition(".")[0], module)
    file = getattr(top, "__file__", None) or getattr(module, "__file__", None)
    if file is None:
        return ()
    root = Path(file).parent
    found = {Path(file)} | ({Path(module.__file__)} if module.__file__ else set())
    for other in list(sys.modules.values()):
        name = getattr(other, "__file__", None)
        path = Path(name) if isinstance(name, str) else None
        if path is None or path.suffix != ".py" or not path.is_relative_to(root):
            continue
        if "site-packages" not in path.relative_to(root).parts and root.name != "site-packages":
            found.add(path)
    return tuple(sorted(path for path in found if path.is_file()))
