"""Loading of weights from a safetensors file or a saved state dict into a torch module."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qtool.errors import ModelError

# Keys of the state dict in training checkpoints, which also hold epochs and optimizer states.
WRAPPERS = ("state_dict", "model_state_dict", "model")
# Prefixes that torch.nn.DataParallel and torch.compile add to every name.
PREFIXES = ("module.", "_orig_mod.")
MAX_SHOWN = 10  # names in one error message


def load_weights(module: nn.Module, path: Path) -> list[str]:
    """Load the weights of a file into a module.

    Args:
        module: changed in place.
        path: a ``.safetensors`` file, or a state dict saved with ``torch.save``.

    Returns:
        One note for each wrapper or prefix that was removed.

    Raises:
        ModelError: the file is missing, damaged, holds other objects than tensors, or does not
            fit the module.
    """
    state, notes = _find_state_dict(_read(path), path)
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes differ; torch lists them below a headline
        lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        raise ModelError(
            f"weights {path}: {len(lines)} tensors do not fit: {_join(lines)}; give the "
            "weights of this network"
        ) from error
    if missing or unexpected:
        problems = [
            f"{len(keys)} {kind} keys: {_join(keys)}"
            for kind, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        raise ModelError(f"weights {path}: {'; '.join(problems)}; give the weights of this network")
    return notes


def _join(items: list[str]) -> str:
    """Join the first names of a list, with the number of the others."""
    more = f" and {len(items) - MAX_SHOWN} more" if len(items) > MAX_SHOWN else ""
    return ", ".join(items[:MAX_SHOWN]) + more


def _read(path: Path) -> Any:
    """Read a file of tensors without running code that it may contain."""
    if not path.is_file():
        raise ModelError(f"weights {path}: no such file; expected .safetensors or a state dict")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"weights {path}: not a readable safetensors file ({error}); save it again"
            ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # weights_only refuses pickled objects; other unpickling errors mean damaged bytes.
        refused = "Unsupported global" in str(error) or "GLOBAL" in str(error)
        raise ModelError(
            f"weights {path}: "
            + (
                "holds pickled Python objects, which could run code; expected tensors only: save "
                "model.state_dict()"
                if refused
                else "not a file of torch.save; expected .safetensors or a saved state dict"
            )
        ) from error
    except Exception as error:  # zip, struct and runtime errors for damaged bytes
        raise ModelError(
            f"weights {path}: cannot be read ({_headline(error)}); expected .safetensors or a "
            "saved state dict"
        ) from error


def _headline(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _find_state_dict(checkpoint: Any, path: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Find the state dict inside a checkpoint.

    Args:
        checkpoint: the content of the file.
        path: for messages.

    Returns:
        Name -> tensor, without wrappers' prefixes, and one note for each removed layer.

    Raises:
        ModelError: there is no state dict.
    """
    notes = []
    while isinstance(checkpoint, Mapping) and not _is_state_dict(checkpoint):
        key = next((key for key in WRAPPERS if isinstance(checkpoint.get(key), Mapping)), None)
        if key is None:
            break
        others = [str(other) for other in checkpoint if other != key]
        ignored = f" (ignored: {_join(others)})" if others else ""
        notes.append(f'weights: taken from "{key}" of the checkpoint{ignored}')
        checkpoint = checkpoint[key]
    if not _is_state_dict(checkpoint):
        kind = f"a {type(checkpoint).__name__}"
        if isinstance(checkpoint, Mapping):
            kind = f"a mapping with the keys {_join([str(key) for key in checkpoint]) or 'none'}"
        raise ModelError(
            f"weights {path}: found {kind}, expected names and tensors; save model.state_dict()"
        )
    state = dict(checkpoint)
    # Prefixes may be nested: a compiled module inside DataParallel.
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        notes.append(f'weights: the prefix "{prefix}" was removed from every name')
    return state, notes


def _is_state_dict(content: Any) -> bool:
    """Return whether this maps names to values of which at least one is a tensor."""
    return (
        isinstance(content, Mapping)
        and any(isinstance(value, torch.Tensor) for value in content.values())
        and all(isinstance(key, str) for key in content)
    )
