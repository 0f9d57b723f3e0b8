"""The arrays reader: which array feeds what, and rows from one or many files."""

from pathlib import Path

import numpy as np
import pytest

from qtool.data import DataSection, InputSpec, open_dataset
from qtool.data.readers.npz import read_columns
from qtool.errors import DataError

X = np.arange(24, dtype=np.float32).reshape(6, 4)
Y = np.arange(6) % 2
SPEC = {"input": InputSpec("input", ("N", 4), "float32")}


def save(tmp_path, name="f.npz", compress=False, **arrays):
    path = tmp_path / name
    (np.savez_compressed if compress else np.savez)(path, **arrays)
    return str(path)


def gather(data, size=4, name="input"):
    return np.concatenate([batch[name] for batch in data.batches(size)])


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_sole_float_array_and_a_label_match_with_a_note(tmp_path, compress, order):
    path = save(tmp_path, compress=compress, x=np.asarray(X, order=order), y=Y)
    data = open_dataset(DataSection(arrays=path), SPEC)
    np.testing.assert_array_equal(gather(data), X)
    assert data.labels.tolist() == Y.tolist() and data.names[2] == "f.npz[2]"
    assert data.notes == (
        "array `y` taken for the labels",
        "array `x` taken for the input `input`",
    )


def test_named_arrays_are_used_without_announcement(tmp_path):
    path = save(tmp_path, a=X, b=X + 1, c=Y)
    section = DataSection(arrays={"path": path, "inputs": {"input": "b"}, "label": "c"})
    data = open_dataset(section, SPEC)
    np.testing.assert_array_equal(gather(data), X + 1)
    assert data.notes == () and data.labels.tolist() == Y.tolist()


def test_arrays_called_as_the_inputs_match(tmp_path):
    ids = np.arange(12).reshape(6, 2)
    path = save(tmp_path, ids=ids, mask=np.ones((6, 2), np.int32), label=Y)
    specs = {name: InputSpec(name, ("N", "T"), "int64") for name in ("ids", "mask")}
    data = open_dataset(DataSection(arrays=path), specs)
    (batch,) = data.batches(9)
    assert set(batch) == {"ids", "mask", "label"} and batch["mask"].dtype == np.int64
    np.testing.assert_array_equal(batch["ids"], ids)


def test_a_npy_file_feeds_a_sole_input(tmp_path):
    np.save(tmp_path / "x.npy", X.astype(np.float64))
    data = open_dataset(DataSection(arrays=str(tmp_path / "x.npy")), SPEC)
    assert gather(data).dtype == np.float32 and data.names[0] == "x.npy[0]"
    assert data.labels is None and "taken for the input `input`" in data.notes[0]


def test_a_folder_holds_one_batch_per_file(tmp_path):
    save(tmp_path, "a.npz", x=X[:2], y=Y[:2])
    save(tmp_path, "b.npz", x=X[2:5], y=Y[2:5], compress=True)
    save(tmp_path, "c.npz", x=X[5:], y=Y[5:])
    data = open_dataset(DataSection(arrays=str(tmp_path)), SPEC)
    assert data.names[1:3] == ("a.npz[1]", "b.npz[0]") and data.labels.tolist() == Y.tolist()
    np.testing.assert_array_equal(gather(data, 4), X)
    np.testing.assert_array_equal(gather(data.take([5, 0, 3])), X[[5, 0, 3]])


def test_stored_arrays_are_mapped_and_not_read(tmp_path):
    stored = read_columns(Path(save(tmp_path, x=X)))["x"]
    packed = read_columns(Path(save(tmp_path, "p.npz", compress=True, x=X)))["x"]
    assert isinstance(stored.values(), np.memmap) and not isinstance(packed.values(), np.memmap)
    np.testing.assert_array_equal(stored.values(), packed.values())


def test_whole_numbers_for_a_float_input_are_announced(tmp_path):
    path = save(tmp_path, input=X.astype(np.uint8))
    data = open_dataset(DataSection(arrays=path), SPEC)
    assert data.notes == (
        "array `input` is uint8; its values feed the float32 input `input` as they are, unscaled",
    )


def test_a_row_s_digest_sees_its_values_only(tmp_path):
    changed = X.copy()
    changed[3, 1] += 1
    one, two = (
        open_dataset(DataSection(arrays=save(tmp_path, name, x=rows)), SPEC)
        for name, rows in (("one.npz", X), ("two.npz", changed))
    )
    differ = [a != b for a, b in zip(one.digests(), two.digests(), strict=True)]
    assert differ == [False, False, False, True, False, False]
    assert one.digest != two.digest


def test_the_digest_sees_labels(tmp_path):
    one = open_dataset(DataSection(arrays=save(tmp_path, x=X, y=Y)), SPEC)
    two = open_dataset(DataSection(arrays=save(tmp_path, "g.npz", x=X, y=1 - Y)), SPEC)
    assert one.digests() == two.digests() and one.digest != two.digest


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X, "y": Y[:5]}, r"different numbers of rows \(x 6, y 5\)"),
        ({"x": X[:, :3]}, r"`x`: has shape \[6, 3\]; .*`input` float32 \[N, 4\]"),
        (
            {"a": X, "b": X},
            r"no array for .*`input`.*found a float32 \[6, 4\], b .*inputs: \{input",
        ),
        ({"y": Y}, r"no array for the model's input `input`"),
        ({"input": X.astype(complex)}, "found complex128, but .* is float32; save the array as"),
        ({"input": X.astype(np.int64)}, "found int64, but .* is float32"),
        ({"input": np.float32(3)}, "is a single number; expected a leading sample axis"),
        ({"x": X[:0]}, "no rows; expected at least one sample"),
    ],
)
def test_arrays_that_do_not_fit_are_described(tmp_path, arrays, words):
    path = save(tmp_path, **arrays)
    with pytest.raises(DataError, match=words) as caught:
        open_dataset(DataSection(arrays=path), SPEC)
    assert path in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"inputs": {"inpt": "x"}}, "names `inpt`, but the model's inputs are input"),
        ({"inputs": {"input": "z"}}, r"holds no array `z`; found x float32 \[6, 4\]"),
        ({"label": "z"}, "holds no array `z`"),
    ],
)
def test_names_that_do_not_exist_are_errors(tmp_path, options, words):
    section = DataSection(arrays={"path": save(tmp_path, x=X), **options})
    with pytest.raises(DataError, match=words):
        open_dataset(section, SPEC)


def test_integers_that_do_not_fit_are_refused(tmp_path):
    spec = {"ids": InputSpec("ids", ("N",), "int32")}
    path = save(tmp_path, ids=np.array([1, 2**40]))
    data = open_dataset(DataSection(arrays=path), spec)
    with pytest.raises(DataError, match=r"f\.npz\[0\]: values 1\.\.1099511627776 do not fit int32"):
        gather(data, name="ids")


def test_an_input_type_numpy_lacks_is_explained(tmp_path):
    spec = {"input": InputSpec("input", ("N", 4), "bfloat16")}
    with pytest.raises(DataError, match="is bfloat16, which numpy data cannot be"):
        open_dataset(DataSection(arrays=save(tmp_path, x=X)), spec)


OPEN = {"x": InputSpec("x", ("N", "T", 2), "float32")}


def lengths(folder, *sizes):
    for number, size in enumerate(sizes):
        np.savez(folder / f"{number}.npz", x=np.ones((2, size, 2), np.float32))
    return str(folder)


def test_files_of_several_lengths_are_refused_for_an_open_size(tmp_path):
    path = lengths(tmp_path, 3, 5, 3, 4, 8)
    words = (
        r"`x` float32 \[N, T, 2\] leaves T open.* 3 \(0.npz\), 4 \(3.npz\), 5 \(1.npz\) and 1 more "
        r"sizes; .*`model: {.., input: {x: \[N, 8, 2\]}}`"
    )
    with pytest.raises(DataError, match=words):
        open_dataset(DataSection(arrays=path), OPEN)


def test_a_size_without_a_name_is_named_by_its_axis(tmp_path):
    specs = {"x": InputSpec("x", (None, None, 2), "float32")}
    with pytest.raises(DataError, match=r"leaves dimension 1 open.*{x: \[N, 5, 2\]}"):
        open_dataset(DataSection(arrays=lengths(tmp_path, 3, 5)), specs)


def test_only_the_samples_that_are_taken_have_to_agree(tmp_path):
    section = DataSection(arrays=lengths(tmp_path, 3, 3, 5), take={"every": 3, "offset": 0})
    chosen = open_dataset(section, OPEN)
    assert chosen.count == 2
