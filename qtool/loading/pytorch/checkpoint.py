"""Parameters of a torch module from a file that holds tensors and nothing else."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qtool.errors import ModelError

# Keys under which checkpoints keep the parameters, beside epochs and optimizers.
WRAPPERS = ("state_dict", "model_state_dict", "model")
# What torch.nn.DataParallel and torch.compile put before every name.
PREFIXES = ("module.", "_orig_mod.")
SHOWN = 10


def load_weights(module: nn.Module, path: Path) -> list[str]:
    """Put the file's tensors into the module.

    Args:
        module: changed in place.
        path: ``.safetensors``, or what ``torch.save`` wrote of a state dict.

    Returns:
        What was unwrapped, a sentence each.

    Raises:
        ModelError: the file is missing, damaged, holds more than tensors, or does not fit.
    """
    state, notes = _unwrapped(_read(path), path)
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes that differ; torch lists them below a headline
        lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        raise ModelError(
            f"weights {path}: {len(lines)} tensors do not fit: {_first(lines)}; give the weights "
            "of this very network"
        ) from error
    if missing or unexpected:
        found = [
            f"{len(keys)} {kind} keys: {_first(keys)}"
            for kind, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        raise ModelError(
            f"weights {path}: {'; '.join(found)}; give the weights of this very network"
        )
    return notes


def _first(items: list[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more


def _read(path: Path) -> Any:
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
            f"weights {path}: cannot be read ({_line(error)}); expected .safetensors or a saved "
            "state dict"
        ) from error


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _unwrapped(found: Any, path: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The mapping of names to tensors inside a checkpoint."""
    notes = []
    while isinstance(found, Mapping) and not _holds(found):
        inner = next((key for key in WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        others = [str(key) for key in found if key != inner]
        beside = f" (left aside: {_first(others)})" if others else ""
        notes.append(f'weights: taken from "{inner}" of the checkpoint{beside}')
        found = found[inner]
    if not _holds(found):
        kind = f"a {type(found).__name__}"
        if isinstance(found, Mapping):
            kind = f"a mapping with the keys {_first([str(key) for key in found]) or 'none'}"
        raise ModelError(
            f"weights {path}: found {kind}, expected names and tensors; save model.state_dict()"
        )
    state = dict(found)
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        notes.append(f'weights: the prefix "{prefix}" was taken off every name')
    return state, notes


def _holds(found: Any) -> bool:
    """Whether this is a state dict: names to tensors, at least one."""
    return (
        isinstance(found, Mapping)
        and any(isinstance(value, torch.Tensor) for value in found.values())
        and all(isinstance(key, str) for key in found)
    )
