"""Compare two files sample by sample: on which only one of them is right."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from benchmarks.timing import inputs_of, session
from qtool.data import Dataset, InputSpec, open_dataset
from qtool.recipe.loader import recipe_from_keywords
from qtool.recipe.model import Recipe

ROWS = 50


def evaluation_samples(recipe: Recipe, inputs: Mapping[str, InputSpec]) -> Dataset:
    """Return the labelled samples of a recipe, preprocessed as the calibration samples are.

    Args:
        recipe: with `evaluate`.
        inputs: of the model.
    """
    if recipe.evaluate is None:
        raise AssertionError(f"{recipe.model} has no labels")
    same = {"preprocess": recipe.evaluate.preprocess or recipe.calibrate.preprocess}
    return open_dataset(recipe.evaluate.model_copy(update=same), inputs)


def hits(content: dict[str, Any], file: Path, threads: int = 1) -> np.ndarray:
    """Return whether a file names the right class, for each evaluation sample.

    Args:
        content: of a recipe, paths absolute.
        file: an ONNX file whose first output is scores of classes.
        threads: of ONNX Runtime.
    """
    run = session(file, threads)
    specs = inputs_of(run)
    recipe = recipe_from_keywords(content, file.name, Path("/"), files=True)
    samples = evaluation_samples(recipe, specs)
    classes: list[np.ndarray] = []
    for batch in samples.batches(ROWS):
        scores = run.run(None, {name: batch[name] for name in specs})[0]
        classes.append(scores.reshape(len(scores), -1).argmax(1))
    return np.asarray(np.concatenate(classes) == np.asarray(samples.labels))


def only_one_right(first: np.ndarray, second: np.ndarray) -> tuple[int, int]:
    """Return on how many samples only the first is right, and on how many only the second."""
    return int(np.sum(first > second)), int(np.sum(first < second))


def mcnemar(wins: int, losses: int) -> float:
    """Return p of the exact McNemar test: that two equal files differ so much or more."""
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
