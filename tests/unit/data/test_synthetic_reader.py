"""Made-up samples: the same for the same position, their statistics, what is refused."""

import numpy as np
import pytest

from qtool.data import READERS, DataSection, InputSpec, Synthetic, open_dataset
from qtool.data.readers.synthetic import COMMON, COUNT, LIMIT, smooth_noise
from qtool.errors import DataError

IMAGE = {"x": InputSpec("x", ("N", 3, 32, 32), "float32")}


def opened(inputs=IMAGE, count=None, **options):
    options = {"ranges": "batchnorm", **options}
    return open_dataset(DataSection(synthetic=options, count=count), inputs)


def test_the_same_position_is_the_same_sample_in_any_batch():
    data = opened()
    assert data.count == COUNT and data.synthetic and data.labels is None
    whole = np.concatenate([b["x"] for b in data.batches(7)])
    again = next(opened().take([5, 2]).batches(2))["x"]
    np.testing.assert_array_equal(again, whole[[5, 2]])
    assert data.digest == opened().digest != opened(std=2.0).digest
    assert opened(count=8).count == 8


def test_mean_deviation_and_limits():
    batch = next(opened(mean=[100.0, 50.0, 0.0], std=20.0).batches(COUNT))["x"]
    assert batch.dtype == np.float32
    np.testing.assert_allclose(batch.mean((0, 2, 3)), [100, 50, 0], atol=8)
    np.testing.assert_allclose(batch.std((0, 2, 3)), 20, rtol=0.15)
    assert abs(batch[:, 2]).max() <= 20 * LIMIT


def test_the_power_of_noise_falls_with_the_square_of_the_frequency():
    rng = np.random.default_rng(0)
    noise = np.stack([smooth_noise((2, 64, 64), rng) for _ in range(64)])
    power = np.mean(np.abs(np.fft.fft2(noise)) ** 2, (0, 1))
    assert power[0, 4] / power[0, 16] == pytest.approx(16, rel=0.25)
    assert noise.std() == pytest.approx(1, rel=0.1)
    assert np.corrcoef(*noise.swapaxes(0, 1).reshape(2, -1))[0, 1] == pytest.approx(
        COMMON, abs=0.05
    )


def test_other_inputs():
    inputs = {
        "v": InputSpec("v", ("N", 5), "float32"),
        "ids": InputSpec("ids", ("N", 4), "int64"),
        "mask": InputSpec("mask", ("N", 4), "bool"),
    }
    batch = next(opened(inputs, ranges="none").batches(3))
    assert batch["v"].shape == (3, 5) and batch["v"].std() > 0
    assert (batch["ids"] == 1).all() and batch["mask"].all()


def test_open_sizes_are_refused():
    with pytest.raises(DataError, match="leaves sizes open"):
        opened({"x": InputSpec("x", ("N", 3, "H", "W"), "float32")})


def test_only_one_reader_is_made_up():
    assert {name for name, reader in READERS.items() if reader.synthetic} == {"synthetic"}
    assert Synthetic(ranges="none").mean is None
    with pytest.raises(ValueError, match="batchnorm"):
        DataSection(synthetic="gauss")


def test_as_many_means_as_channels():
    gray = {"x": InputSpec("x", ("N", 1, 8, 8), "float32")}
    with pytest.raises(DataError, match="`mean` has 3 numbers"):
        opened(gray, ranges="none", mean=[1, 2, 3])
    batch = next(opened(gray, ranges="none", mean=[100]).batches(2))
    assert batch["x"].shape == (2, 1, 8, 8) and batch["x"].mean() == pytest.approx(100, abs=3)
