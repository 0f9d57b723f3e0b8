"""A torch module from the user's own code: ``module:factory``."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from qtool.errors import ModelError
from qtool.user_code import guarded, load_function


def import_factory(name: str, folder: Path | None) -> tuple[Callable[[], Any], tuple[Path, ...]]:
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
    place = None if folder is None else str(folder)
    factory = load_function(name, place, trusted=True, key="torch", kind=ModelError)
    return factory, _sources(name.partition(":")[0])


def build(name: str, factory: Callable[[], Any]) -> nn.Module:
    """Call the factory.

    Raises:
        ModelError: it fails, or returns no ``nn.Module``.
    """
    with guarded(f"torch: calling {name}()", ModelError):
        module = factory()
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"torch: {name}() returned a {type(module).__name__}; expected a torch.nn.Module"
        )
    return module


def _sources(where: str) -> tuple[Path, ...]:
    """Source files loaded from the folder that the module, or its package, lies in."""
    module = sys.modules[where]
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
