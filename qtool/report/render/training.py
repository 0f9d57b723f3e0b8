"""The course of training: the score of the held-out samples, the loss, and what was gained."""

from dataclasses import dataclass, replace

from qtool.report.render.charts import Column, Strip, Tick, line, share, ticks_inside
from qtool.report.report import Report
from qtool.report.schema import TrainingEpoch, TrainingPart

DOTTED = 60
"""Epochs at most whose points are drawn as dots."""


@dataclass(frozen=True)
class TrainingView:
    """The panel of training.

    Attributes:
        part: the samples and epochs.
        strips: score and loss of each epoch.
        rows: (name, score) of the float network, the plan before training, and the one kept.
    """

    part: TrainingPart
    strips: list[Strip]
    rows: list[tuple[str, str]]


def training_view(report: Report) -> TrainingView | None:
    """Place the epochs; None without training.

    Without labels the score is minus the loss against the float network: less is better.
    """
    training = report.data.training
    if training is None:
        return None
    epochs = training.epochs
    by_labels = any(epoch.score > 0 for epoch in epochs)
    strips = [_score_strip(training, by_labels)]
    losses = [epoch.loss for epoch in epochs]
    if any(loss is not None for loss in losses):
        strips.append(_strip("Training loss", epochs, losses, {}))
    return TrainingView(training, strips, _rows(training, by_labels))


def _score_strip(training: TrainingPart, by_labels: bool) -> Strip:
    """Place the score of each epoch, with lines at the float network's and at the first one."""
    epochs = training.epochs
    levels = {"before training": abs(epochs[0].score)} if epochs and epochs[0].epoch == 0 else {}
    if training.float_score is not None:
        levels = {"float": training.float_score, **levels}
    title = "Top-1 in %" if by_labels else "Loss against the float network"
    title += f" on {training.validation} held-out samples"
    strip = _strip(title, epochs, [abs(epoch.score) for epoch in epochs], levels, tall=True)
    columns = [
        Column(0, column.tip, "good" if epoch.epoch == training.best else "plain")
        for column, epoch in zip(strip.columns, epochs, strict=True)
    ]
    return replace(strip, columns=columns)


def _strip(
    title: str,
    epochs: list[TrainingEpoch],
    values: list[float] | list[float | None],
    levels: dict[str, float],
    tall: bool = False,
) -> Strip:
    """Place one value of each epoch as a line on an axis that starts near the smallest."""
    numbers = [value for value in (*values, *levels.values()) if value is not None]
    low, high = min(numbers), max(numbers)
    room = (high - low) * 0.12 or abs(high) * 0.05 or 0.5
    bottom, span = low - room, high - low + 2 * room

    def place(value: float) -> float:
        return share(value - bottom, span)

    return Strip(
        title=title,
        columns=[Column(0, _tip(epoch)) for epoch in epochs],
        ticks=ticks_inside(bottom, bottom + span),
        line=line([None if value is None else place(value) for value in values]),
        dotted=len(epochs) <= DOTTED,
        marks=tuple(Tick(place(value), name) for name, value in levels.items()),
        tall=tall,
    )


def _rows(training: TrainingPart, by_labels: bool) -> list[tuple[str, str]]:
    """Return the scores that training is compared by."""
    scores = {epoch.epoch: abs(epoch.score) for epoch in training.epochs}
    rows = [] if training.float_score is None else [("float network", training.float_score)]
    rows += [("before training (PTQ)", scores[0])] if 0 in scores else []
    if training.best in scores and training.best != 0:
        rows.append((f"after epoch {training.best} (QAT)", scores[training.best]))
    return [(name, f"{score:.2f} %" if by_labels else f"{score:.4g}") for name, score in rows]


def _tip(epoch: TrainingEpoch) -> str:
    shares = (("oscillating", epoch.oscillating), ("frozen", epoch.frozen))
    words = [f"{share:.2%} {name}" for name, share in shares if share is not None]
    loss = [] if epoch.loss is None else [f"loss {epoch.loss:.4g}"]
    return ", ".join([f"epoch {epoch.epoch}: {abs(epoch.score):.4g}", *loss, *words])
