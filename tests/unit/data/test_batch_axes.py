"""Batch axes: by the names and sizes of the model, by the data, or none; and arrays that fit."""

import numpy as np
import pytest

from qtool.data import DataSection, InputSpec, fit_batch_axes, open_dataset
from qtool.data.batch_axes import axes_of_data, axes_of_model
from qtool.data.inputs import fixed_batch
from qtool.errors import DataError


def specs(**shapes):
    return {name: InputSpec(name, shape, "float32") for name, shape in shapes.items()}


def axes(inputs):
    return [spec.batch_axis for spec in inputs.values()]


@pytest.mark.parametrize(
    ("shapes", "expected", "batch"),
    [
        ({"x": ("N", 4), "h": ("N", 6)}, [0, 0], None),
        ({"x": ("N", 4), "h": (2, "N", 6)}, [0, 1], None),
        ({"h": (2, "N", 6), "x": ("N", 4)}, [1, 0], None),
        ({"x": ("N", 4), "h": ("layers", "N", 6)}, [0, 1], None),
        ({"x": (None, 4), "h": (2, None, 6)}, [0, 1], None),
        ({"x": ("x_axis_0", 4), "h": (2, "h_axis_1", 6)}, [0, 1], None),
        ({"x": (1, 576), "h": (2, 1, 128)}, [0, 1], 1),
        ({"x": (4, 10), "h": (2, 4, 6)}, [0, 1], 4),
        ({"x": (3, 41), "h": (2, 64)}, [None, None], 1),
        ({"x": ("N", 4), "s": ()}, [0, None], None),
        ({"s": ()}, [None], 1),
        ({"x": ("N", 4), "a": (64, 64), "b": (16, 16)}, [0, None, None], None),
        ({"x": (None, 4), "h": (1, None, 6)}, [0, 0], 1),
    ],
)
def test_axes_by_the_model(shapes, expected, batch):
    found, notes = axes_of_model(specs(**shapes), frozenset())
    assert axes(found) == expected and fixed_batch(found.values()) == batch
    assert bool(notes) == any(
        axis != 0 for s, axis in zip(shapes.values(), expected, strict=True) if s
    )


def test_a_declared_axis_stays():
    inputs = specs(x=("N", 4), h=(2, "N", 6))
    assert axes(axes_of_model(inputs, frozenset(["h"]))[0]) == [0, 0]


@pytest.mark.parametrize(
    ("shapes", "arrays", "expected"),
    [
        ({"x": ("N", 4), "h": (None, None, 6)}, {"x": (9, 4), "h": (2, 9, 6)}, [0, 1]),
        ({"x": ("N", 4), "h": (2, 1, 6)}, {"x": (1, 4), "h": (2, 1, 6)}, [0, 1]),
        ({"x": ("N", 4), "m": (1, 8, 8)}, {"x": (9, 4), "m": (1, 8, 8)}, [0, None]),
        ({"m": (8, 8), "x": ("N", 4)}, {"m": (8, 8), "x": (9, 4)}, [None, 0]),
        ({"x": ("N", 4), "h": ("L", "K", 6)}, {"x": (3, 4), "h": (2, 5, 6)}, [None, None]),
        ({"x": ("N", 4), "m": (1, 8, None)}, {"x": (9, 4), "m": (1, 8, 7)}, [0, 0]),
        ({"x": (1, 4), "h": (1, 1, 6)}, {"x": (9, 4), "h": (1, 9, 6)}, [0, 1]),
        ({"x": (8,)}, {"x": (9, 8)}, [None]),
        ({"x": (5, 8), "h": (2, 5, 6)}, {"x": (9, 5, 8), "h": (9, 2, 5, 6)}, [None, None]),
    ],
)
def test_axes_by_the_data(shapes, arrays, expected):
    found, notes = axes_of_data(arrays, specs(**shapes))
    assert axes(found) == expected and bool(notes) == (set(expected) != {0})


def rows(tmp_path, inputs, **arrays):
    np.savez(tmp_path / "d.npz", **arrays)
    section = DataSection(arrays=str(tmp_path / "d.npz"))
    inputs, _ = fit_batch_axes(section, inputs)
    return open_dataset(section, inputs)


X = np.arange(12, dtype=np.float32).reshape(6, 2)


@pytest.mark.parametrize("size", [1, 4])
def test_samples_lie_along_the_batch_axis_of_the_input(tmp_path, size):
    h = np.arange(36, dtype=np.float32).reshape(2, 6, 3)
    data = rows(tmp_path, specs(x=("N", 2), h=("L", "K", 3)), x=X, h=h)
    batches = list(data.take([4, 1, 0, 3, 5, 2]).batches(size))
    got = np.concatenate([batch["h"] for batch in batches], axis=1)
    np.testing.assert_array_equal(got, h[:, [4, 1, 0, 3, 5, 2]])


@pytest.mark.parametrize("shape", [(2, 6, 3), (6, 2, 1, 3)])
def test_states_of_a_fixed_batch_in_both_forms(tmp_path, shape):
    h = np.arange(36, dtype=np.float32).reshape(shape)
    inputs, _ = axes_of_model(specs(x=(1, 2), h=(2, 1, 3)), frozenset())
    batch = next(iter(rows(tmp_path, inputs, x=X, h=h).take([5]).batches(1)))
    expected = h[:, 5:] if h.ndim == 3 else h[5]
    assert batch["x"].shape == (1, 2)
    np.testing.assert_array_equal(batch["h"], expected)


def test_one_array_serves_all_samples(tmp_path):
    mask = np.tri(4, dtype=np.float32)[None]
    inputs = specs(x=("N", 2), mask=(1, 4, 4), scale=())
    data = rows(tmp_path, inputs, x=X, mask=mask, scale=np.float32(0.5))
    (batch,) = data.batches(6)
    assert batch["mask"].shape == (1, 4, 4) and batch["scale"].shape == ()
    np.testing.assert_array_equal(batch["mask"], mask)


def test_a_fixed_mask_of_one_sample_serves_all_of_them(tmp_path):
    inputs, _ = axes_of_model(specs(x=(1, 2), mask=(1, 4, None)), frozenset())
    data = rows(tmp_path, inputs, x=X, mask=np.tri(4, dtype=np.float32)[None])
    assert data.count == 6
    np.testing.assert_array_equal(next(iter(data.take([3]).batches(1)))["mask"][0], np.tri(4))


def test_an_array_may_hold_whole_inputs_without_a_batch_axis(tmp_path):
    data = rows(tmp_path, specs(x=(2, 3)), x=np.arange(36, dtype=np.float32).reshape(6, 2, 3))
    assert data.count == 6
    (batch,) = data.take([4]).batches(1)
    np.testing.assert_array_equal(batch["x"], [[24, 25, 26], [27, 28, 29]])


def test_arrays_without_a_common_axis_are_calls(tmp_path):
    """Every file is one call, fed as it is, also with other numbers in it."""
    for k in range(3):
        x, h = np.full((3, 2), k, np.float32), np.full((2, 5, 3), -k, np.float32)
        np.savez(tmp_path / f"{k}.npz", x=x, h=h, label=k)
    section = DataSection(arrays=str(tmp_path))
    inputs, _ = fit_batch_axes(section, specs(x=("N", 2), h=("L", "K", 3)))
    data = open_dataset(section, inputs)
    assert data.count == 3 and data.labels.tolist() == [0, 1, 2]
    assert fixed_batch(inputs.values()) == 1
    for k, batch in enumerate(data.batches(1)):
        assert batch["x"].shape == (3, 2) and batch["h"].shape == (2, 5, 3)
        assert (batch["x"] == k).all() and (batch["h"] == -k).all()


def test_calls_of_several_sizes_are_refused_by_name(tmp_path):
    for k in range(2):
        x, h = np.ones((3, 2), np.float32), np.ones((2, 5 + k, 3), np.float32)
        np.savez(tmp_path / f"{k}.npz", x=x, h=h)
    section = DataSection(arrays=str(tmp_path))
    inputs, _ = fit_batch_axes(section, specs(x=("N", 2), h=("L", "K", 3)))
    with pytest.raises(DataError, match=r"leaves K open.*5 \(0.npz\), 6 \(1.npz\)"):
        open_dataset(section, inputs)


def test_samples_that_differ_in_a_shared_input_need_a_call_each(tmp_path):
    data = rows(tmp_path, specs(x=("N", 2), s=()), x=X, s=np.arange(6, dtype=np.float32))
    assert [float(batch["s"]) for batch in data.batches(1)] == [0, 1, 2, 3, 4, 5]
    with pytest.raises(DataError, match=r"`s` float32 .* is one array for all samples"):
        next(iter(data.batches(2)))


def test_a_constant_is_fed_without_data(tmp_path):
    inputs = specs(x=("N", 2)) | {
        "rate": InputSpec("rate", (), "int64", constant=16000),
        "mask": InputSpec("mask", ("N", 3), "int64", constant=1),
        "bias": InputSpec("bias", (2, 2), "float32", None, ((1.0, 2.0), (3.0, 4.0))),
    }
    data = rows(tmp_path, inputs, x=X)
    (batch,) = data.batches(6)
    assert batch["rate"] == 16000 and batch["rate"].dtype == np.int64
    np.testing.assert_array_equal(batch["mask"], np.ones((6, 3), np.int64))
    np.testing.assert_array_equal(batch["bias"], [[1, 2], [3, 4]])
    slower = inputs | {"rate": InputSpec("rate", (), "int64", constant=8000)}
    others = [rows(tmp_path, other, x=X).digest for other in (inputs, slower)]
    assert others[0] == data.digest != others[1]  # what is cached for one is not for the other


def test_data_that_feeds_nothing_is_refused(tmp_path):
    inputs = {"rate": InputSpec("rate", (), "int64", constant=16000)}
    with pytest.raises(DataError, match="feeds no input of the model"):
        rows(tmp_path, inputs, x=X)
