"""Construction of a torch module by a function of the user, ``module:factory``."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from qtool.errors import ModelError
from qtool.user_code import guarded, load_function


def import_factory(name: str, folder: Path | None) -> tuple[Callable[[], Any], tuple[Path, ...]]:
    """Import a factory. This runs the code of its module.

    Args:
        name: ``package.module:factory``.
        folder: searched for the module before ``sys.path``.

    Returns:
        The factory, and the source files of the module and of the modules that it imports from its
        own folder.

    Raises:
        ModelError: there is no such module or factory, or the import fails.
    """
    place = None if folder is None else str(folder)
    factory = load_function(name, place, trusted=True, key="torch", kind=ModelError)
    return factory, _sources(name.partition(":")[0])


def build(name: str, factory: Callable[[], Any]) -> nn.Module:
    """Call a factory.

    Args:
        name: of the factory, for messages.
        factory: takes no arguments.

    Returns:
        The module that it made.

    Raises:
        ModelError: the factory fails or returns no ``nn.Module``.
    """
    with guarded(f"torch: calling {name}()", ModelError):
        module = factory()
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"torch: {name}() returned a {type(module).__name__}; expected a torch.nn.Module"
        )
    return module


def _sources(name: str) -> tuple[Path, ...]:
    """Return the loaded source files in the folder of a module or of its package."""
    module = sys.modules[name]
    top = sys.modules.get(name.partition(".")[0], module)
    file = getattr(top, "__file__", None) or getattr(module, "__file__", None)
    if file is None:
        return ()
    root = Path(file).parent
    paths = {Path(file)} | ({Path(module.__file__)} if module.__file__ else set())
    for other in list(sys.modules.values()):
        source = getattr(other, "__file__", None)
        path = Path(source) if isinstance(source, str) else None
        if path is None or path.suffix != ".py" or not path.is_relative_to(root):
            continue
        # Installed packages are not the user's code, even in an environment inside the folder.
        if "site-packages" not in path.relative_to(root).parts and root.name != "site-packages":
            paths.add(path)
    return tuple(sorted(path for path in paths if path.is_file()))
