"""Evaluation images that are calibration images, encoded again."""

import numpy as np
from PIL import Image

from qtool.data import DataSection, InputSpec, open_dataset
from qtool.pipeline.checks.near_duplicates import near_duplicate_notes

RNG = np.random.default_rng(0)


def images(folder, arrays, **options):
    folder.mkdir()
    for k, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{k}.{options.get('format', 'PNG')}", **options)
    side = arrays[0].shape[0]
    spec = {"x": InputSpec("x", ("N", 3, side, side), "float32")}
    section = DataSection(images=str(folder), preprocess={"mean": 0.5})
    return open_dataset(section, spec)


def photos(count, side):
    """Coloured clouds: coarse noise, enlarged."""
    coarse = RNG.integers(0, 256, (count, 6, 6, 3), np.uint8)
    size = (side, side)
    return [np.asarray(Image.fromarray(c).resize(size, Image.Resampling.BICUBIC)) for c in coarse]


def test_an_image_that_was_encoded_again_is_named(tmp_path):
    seen, new = photos(20, 48), photos(20, 48)
    calibration = images(tmp_path / "seen", seen)
    assert near_duplicate_notes(calibration, images(tmp_path / "new", new)) == []
    brighter = (seen[7] * 0.8 + 40).astype(np.uint8)
    mixed = images(tmp_path / "mixed", [*new, brighter, seen[3]], format="JPEG", quality=60)
    (note,) = near_duplicate_notes(calibration, mixed)
    assert note.startswith("WARNING: 2 of 22 evaluation images nearly equal one of 20 calibration")
    assert "(first: 20.JPEG, and 7.PNG of calibrate)" in note


def test_images_of_one_colour_and_tiny_ones_are_not_compared(tmp_path):
    flat = [np.full((32, 32, 3), value, np.uint8) for value in (10, 200)]
    assert near_duplicate_notes(images(tmp_path / "a", flat), images(tmp_path / "b", flat)) == []
    tiny = photos(2, 8)
    assert near_duplicate_notes(images(tmp_path / "c", tiny), images(tmp_path / "d", tiny)) == []
