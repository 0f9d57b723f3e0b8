"""Class names in the order of the model's outputs."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from qtool.errors import DataError, suggest


def read_classes(path: Path) -> tuple[str, ...]:
    """Read class names in the order of the model's outputs, one a line, or a JSON list of them.

    Raises:
        DataError: the file cannot be read, or a name occurs twice.
    """
    expected = "one class name a line, or a JSON list of names"
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = json.loads(text) if path.suffix.lower() == ".json" else text.splitlines()
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected {expected}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: found no list of names; expected {expected}")
    while names and not names[-1].strip():
        names.pop()
    return check_classes([name.strip() for name in names], str(path))


def check_classes(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the names; raise DataError where there is none, or one is empty or occurs twice."""
    counts = Counter(names)
    wrong = [name for name in names if not name or counts[name] > 1]
    if wrong or not names:
        shown = "no name" if not names else f'"{wrong[0]}" twice' if wrong[0] else "an empty name"
        raise DataError(f"{where}: found {shown}; expected each class once, in the model's order")
    return tuple(names)


def ordered_classes(
    present: Sequence[str], order: Sequence[str] | None, where: str
) -> tuple[str, ...]:
    """Return the class names by number: sorted, or in the order of ``classes``.

    Args:
        present: class names in the data.
        order: the recipe's ``classes``; it may name more than the data has.
        where: the data, for messages.

    Raises:
        DataError: a name is not in the order.
    """
    if order is None:
        return tuple(sorted(set(present)))
    unknown = sorted(set(present) - set(order))
    if unknown:
        raise DataError(
            f"{where}: {len(unknown)} class names are not in `classes` (first: {unknown[0]}"
            f"{suggest(unknown[0], order)}); expected the names of the data, in the order of the "
            "model's outputs: correct the list"
        )
    return tuple(order)
