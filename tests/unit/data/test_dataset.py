"""Datasets: batches, padding, taking, splitting and overlap are laws over any source."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.data import Dataset, InputSpec, drop_overlap, split
from qtool.errors import DataError


class Rows:
    """A source of numbered rows; a row's digest is its value."""

    def __init__(self, values):
        self.values = np.asarray(values, np.float32)

    def stream(self, positions, size):
        for start in range(0, len(positions), size):
            yield {"x": self.values[list(positions[start : start + size])]}

    def digest(self, position):
        return str(self.values[position])


def rows(count, labels=None, values=None):
    values = range(count) if values is None else values
    names = tuple(f"row[{index}]" for index in range(count))
    labels = None if labels is None else np.asarray(labels)
    return Dataset(names, Rows(values), tuple(range(count)), labels)


@given(count=st.integers(1, 30), size=st.integers(1, 12))
def test_batches_hold_every_sample_once_in_order(count, size):
    data = rows(count, labels=range(count))
    batches = list(data.batches(size))
    assert [len(batch["x"]) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    for key in ("x", "label"):
        np.testing.assert_array_equal(np.concatenate([b[key] for b in batches]), range(count))


@given(count=st.integers(1, 30), size=st.integers(1, 12))
def test_padded_batches_are_full_and_trim_to_the_same(count, size):
    data = rows(count, labels=range(count))
    pairs = list(data.calls(size, full=True))
    assert all(len(batch["x"]) == len(batch["label"]) == size for batch, _ in pairs)
    trimmed = np.concatenate([batch["x"][:valid] for batch, valid in pairs])
    np.testing.assert_array_equal(trimmed, range(count))
    last, valid = pairs[-1]
    assert (last["x"][valid:] == last["x"][valid - 1]).all()


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch size is 0"):
        next(rows(3).batches(0))


def test_take_keeps_names_labels_and_rows_together():
    data = rows(5, labels=[5, 6, 7, 8, 9]).take([3, 1]).take(np.array([1, 0]))
    assert data.names == ("row[1]", "row[3]") and data.labels.tolist() == [6, 8]
    assert next(data.batches(2))["x"].tolist() == [1, 3]


@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=60),
    seed=st.integers(0, 99),
    share=st.floats(0.01, 0.99),
)
def test_a_split_is_disjoint_exhaustive_ordered_and_repeatable(labels, seed, share):
    data = rows(len(labels), labels=labels)
    holdout = min(max(1, round(share * len(labels))), len(labels) - 1)
    rest, chosen = split(data, holdout, seed)
    assert chosen.count == holdout
    assert sorted(rest.positions + chosen.positions) == list(range(len(labels)))
    assert list(chosen.positions) == sorted(chosen.positions)
    assert split(data, holdout, seed)[1].positions == chosen.positions
    for label in set(labels):  # every class gives its share, to within a sample
        expected = labels.count(label) * holdout / len(labels)
        assert abs(chosen.labels.tolist().count(label) - expected) <= 1 + len(set(labels)) / 2


def test_a_fraction_splits_every_class_alike_and_the_seed_matters():
    data = rows(100, labels=np.repeat([0, 1], 50))
    rest, chosen = split(data, 0.2, 0)
    assert np.bincount(chosen.labels).tolist() == [10, 10] and rest.count == 80
    assert split(data, 0.2, 1)[1].positions != chosen.positions


def test_a_split_needs_no_labels():
    rest, chosen = split(rows(10), 3, 0)
    assert (rest.count, chosen.count) == (7, 3)


@pytest.mark.parametrize(("count", "holdout"), [(1, 0.5), (3, 3), (4, 0.01)])
def test_a_split_with_an_empty_side_is_an_error(count, holdout):
    with pytest.raises(DataError, match=f"found {count} samples, of which .* give more data"):
        split(rows(count), holdout, 0)


def test_overlap_is_dropped_from_calibration_and_named():
    calibration, evaluation = rows(4, labels=[0, 1, 2, 3]), rows(3, values=[2, 9, 0])
    rest, dropped = drop_overlap(calibration, evaluation)
    assert dropped == ("row[0]", "row[2]")
    assert rest.names == ("row[1]", "row[3]") and rest.labels.tolist() == [1, 3]


def test_an_input_spec_knows_its_batch_and_what_fits():
    fixed = InputSpec("x", (4, None, "T", 3), "float32")
    assert fixed.batch == 4 and fixed.fits((9, 9, 3))
    assert not fixed.fits((9, 9, 4)) and not fixed.fits((9, 3))
    assert InputSpec("x", ("N",), "int64").batch is None
    assert fixed.describe() == "`x` float32 [4, ?, T, 3]"
