"""List the classes whose answers changed between float model and file."""

from collections.abc import Mapping, Sequence

import numpy as np

from qtool.report.schema import Accuracy, ClassChange

# Classes that the report lists.
SHOWN_CLASSES = 10


def with_classes(
    accuracy: Accuracy,
    outputs: Mapping[str, np.ndarray],
    labels: np.ndarray,
    names: Sequence[str] | None,
) -> Accuracy:
    """Return the accuracy with the number of named classes, and the classes that lost most.

    Args:
        accuracy: of float model and file, by a metric of class numbers.
        outputs: "float" and "quantized" -> class scores [N, C].
        labels: [N].
        names: of the classes, by number; None where labels are numbers.
    """
    update = {
        "label_classes": None if names is None else len(names),
        "class_changes": class_changes(outputs, labels, names)[:SHOWN_CLASSES] or None,
    }
    return accuracy.model_copy(update=update)


def class_changes(
    outputs: Mapping[str, np.ndarray], labels: np.ndarray, names: Sequence[str] | None
) -> list[ClassChange]:
    """Return the classes with a changed answer, those that lost most first.

    Args:
        outputs: "float" and "quantized" -> class scores [N, C].
        labels: [N].
        names: of the classes, by number; None where labels are numbers.
    """

    def name(number: int) -> str:
        return names[number] if names is not None and number < len(names) else str(number)

    before, after = (
        np.asarray(outputs[key]).reshape(len(labels), -1).argmax(1)
        for key in ("float", "quantized")
    )
    lost = (before == labels) & (after != labels)
    gained = (before != labels) & (after == labels)
    changes = []
    for label in np.unique(labels[lost | gained]).tolist():
        own = labels == label
        taken = np.unique(after[own & lost], return_counts=True)
        changes.append(
            ClassChange(
                name=name(label),
                samples=int(own.sum()),
                lost=int((own & lost).sum()),
                gained=int((own & gained).sum()),
                mistaken_for=name(int(taken[0][taken[1].argmax()])) if len(taken[0]) else None,
            )
        )
    return sorted(changes, key=lambda each: (each.gained - each.lost, each.name))
