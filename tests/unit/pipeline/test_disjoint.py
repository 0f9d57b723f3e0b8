"""Samples that train or calibrate are no evaluation samples."""

import numpy as np
import pytest

from qtool.data import Dataset
from qtool.data.spool import ArraySource
from qtool.errors import RecipeError
from qtool.pipeline.input_checks import disjoint
from qtool.recipe.model import Recipe


def dataset(values: range) -> Dataset:
    rows = np.array(values, np.float32)[:, None]
    return Dataset(tuple(map(str, values)), ArraySource({"x": rows}), tuple(range(len(values))))


def test_evaluation_samples_that_calibrate_too_do_not_train():
    own = {"arrays": "samples.npz"}
    held_out, samples = dataset(range(10, 14)), dataset(range(20))
    without = Recipe.model_validate({"model": "net.onnx", "calibrate": own})
    rest, notes = disjoint(without, without.calibrate, samples, held_out, "training")
    assert set(rest.names) == {str(k) for k in (*range(10), *range(14, 20))}
    assert "4 training samples are evaluation samples too" in notes[0]
    recipe = Recipe.model_validate({"model": "net.onnx", "calibrate": own, "evaluate": own})
    with pytest.raises(RecipeError, match="4 of 4 evaluation samples are training samples too"):
        disjoint(recipe, recipe.calibrate, samples, held_out, "training")
    with pytest.raises(RecipeError, match="4 of 4"):  # nothing is left to train on
        disjoint(without, without.calibrate, held_out, held_out, "training")
