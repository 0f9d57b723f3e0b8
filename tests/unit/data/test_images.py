"""The images reader: classes, labels, pixels, order, and the guess."""

import hashlib
import json
import threading

import numpy as np
import pytest
from PIL import Image

from qtool.data import DataSection, InputSpec, Preprocess, open_dataset
from qtool.data.readers.decode import decode, default_workers
from qtool.errors import DataError

SPEC = {"input": InputSpec("input", ("N", 3, 8, 8), "float32")}
PLAIN = {"scale": 1.0}


def picture(path, seed=0, size=(8, 8), mode="RGB", **save):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, **save)
    return pixels


def folder(tmp_path, per_class=3, classes=("cat", "dog")):
    for number, name in enumerate(classes):
        for index in range(per_class):
            picture(tmp_path / name / f"{index:03}.png", seed=100 * number + index)
    return str(tmp_path)


def gather(dataset, size=4):
    return np.concatenate([batch["input"] for batch in dataset.batches(size)])


def test_class_folders_give_labels_and_an_empty_one_counts(tmp_path):
    folder(tmp_path, 2)
    (tmp_path / "bird").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "cat" / ".DS_Store").write_text("x")
    data = open_dataset(DataSection(images=str(tmp_path)), SPEC)
    assert data.classes == ("bird", "cat", "dog")
    assert data.names == ("cat/000.png", "cat/001.png", "dog/000.png", "dog/001.png")
    assert data.labels.tolist() == [1, 1, 2, 2]
    assert [b["label"].tolist() for b in data.batches(3)] == [[1, 1, 2], [2]]


def test_a_flat_folder_has_no_labels(tmp_path):
    picture(tmp_path / "b.png", 1)
    picture(tmp_path / "a.jpg", 2)
    data = open_dataset(DataSection(images=str(tmp_path)), SPEC)
    assert data.names == ("a.jpg", "b.png") and data.labels is None and data.classes is None
    assert set(next(data.batches(2))) == {"input"}


def test_pixels_follow_the_formula(tmp_path):
    pixels = picture(tmp_path / "a.png")
    how = Preprocess(mean=[0.5, 0.25, 0.125], std=[0.5, 1, 2])
    data = open_dataset(DataSection(images=str(tmp_path), preprocess=how), SPEC)
    (batch,) = data.batches(1)
    x = pixels.astype(np.float32) * np.float32(1 / 255)
    expected = (x - np.float32([0.5, 0.25, 0.125])) / np.float32([0.5, 1, 2])
    assert batch["input"].dtype == np.float32 and batch["input"].flags.c_contiguous
    np.testing.assert_array_equal(batch["input"][0], expected.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("how", "shape", "pick"),
    [
        ({"color": "bgr"}, (3, 8, 8), lambda p: p[..., ::-1].transpose(2, 0, 1)),
        ({"layout": "nhwc"}, (8, 8, 3), lambda p: p),
        ({"crop": 4}, (3, 4, 4), lambda p: p[2:6, 2:6].transpose(2, 0, 1)),
        ({"crop": [2, 6]}, (3, 2, 6), lambda p: p[3:5, 1:7].transpose(2, 0, 1)),
        ({"resize": [8, 8]}, (3, 8, 8), lambda p: p.transpose(2, 0, 1)),
    ],
)
def test_options_move_pixels_where_they_say(tmp_path, how, shape, pick):
    pixels = picture(tmp_path / "a.png")
    spec = {"input": InputSpec("input", (None, *shape), "float32")}
    section = DataSection(images=str(tmp_path), preprocess=how | PLAIN)
    np.testing.assert_array_equal(gather(open_dataset(section, spec))[0], pick(pixels))


def test_uint8_inputs_get_the_pixels(tmp_path):
    pixels = picture(tmp_path / "a.png")
    spec = {"input": InputSpec("input", ("N", 3, 8, 8), "uint8")}
    for how in (None, {"dtype": "uint8"}):
        rows = gather(open_dataset(DataSection(images=str(tmp_path), preprocess=how), spec))
        assert rows.dtype == np.uint8
        np.testing.assert_array_equal(rows[0], pixels.transpose(2, 0, 1))


def test_the_short_side_is_resized_and_the_long_one_rounded(tmp_path):
    picture(tmp_path / "a.png", size=(10, 15))
    assert decode(tmp_path / "a.png", Preprocess(resize=7)).shape == (7, 10, 3)  # 15 * 0.7 = 10.5
    assert decode(tmp_path / "a.png", Preprocess(resize=[3, 4])).shape == (3, 4, 3)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_color_mode_becomes_rgb_or_gray(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture(path, mode=mode)
    assert decode(path, Preprocess()).shape == (8, 8, 3)
    assert decode(path, Preprocess(color="gray")).shape == (8, 8, 1)


def test_a_palette_with_transparency_keeps_its_colors(tmp_path):
    palette = Image.new("P", (8, 8))
    palette.putpalette([10, 20, 30] + [0] * 765)
    palette.save(tmp_path / "a.png", transparency=b"\x80\x00")
    assert (decode(tmp_path / "a.png", Preprocess()) == [10, 20, 30]).all()


def test_the_first_frame_is_read_and_a_camera_is_not_turned(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (decode(tmp_path / "a.gif", Preprocess()) == [255, 0, 0]).all()
    rotated = Image.Exif()
    rotated[274] = 6  # Orientation: turn by 90 degrees
    Image.new("RGB", (12, 8)).save(tmp_path / "a.jpg", exif=rotated)
    assert decode(tmp_path / "a.jpg", Preprocess()).shape == (8, 12, 3)


def test_threads_change_nothing(tmp_path):
    section = DataSection(images=folder(tmp_path, 20))
    one, many = (open_dataset(section, SPEC, workers=workers) for workers in (0, 3))
    np.testing.assert_array_equal(gather(one), gather(many, size=7))
    assert one.digest == many.digest


def test_closing_a_partly_read_iterator_ends_its_threads(tmp_path):
    data = open_dataset(DataSection(images=folder(tmp_path, 40)), SPEC, workers=3)
    batches = data.batches(4)
    next(batches)
    assert any(t.name.startswith("qtool-decode") for t in threading.enumerate())
    batches.close()
    assert not any(t.name.startswith("qtool-decode") for t in threading.enumerate())


def test_tiny_files_are_decoded_without_threads(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(4), raising=False)
    picture(tmp_path / "tiny.png")
    picture(tmp_path / "large.png", size=(99, 99))
    assert default_workers([tmp_path / "tiny.png"]) == 0
    assert default_workers([tmp_path / "large.png"]) == 4


def test_decoding_runs_only_a_bounded_number_ahead(tmp_path, monkeypatch):
    from qtool.data.readers import decode as module

    decoded = []
    monkeypatch.setattr(module, "decode", lambda path, how: decoded.append(path) or np.zeros(1))
    stream = module.decode_all([tmp_path] * 500, Preprocess(), 4, 2)
    next(stream)
    stream.close()
    assert len(decoded) <= 4 + 2 * 2 + 1


def test_digests_are_those_of_the_files_and_see_every_byte(tmp_path):
    root = folder(tmp_path)
    before = open_dataset(DataSection(images=root), SPEC)
    path = tmp_path / "dog" / "001.png"
    assert before.digests()[4] == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes() + b"\0")
    after = open_dataset(DataSection(images=root), SPEC)
    changed = [a != b for a, b in zip(before.digests(), after.digests(), strict=True)]
    assert changed == [False] * 4 + [True, False] and before.digest != after.digest


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", "image,label\ncat/000.png,5\n001.png,4\ndog,2\n"),
        ("l.tsv", "000\t5\ncat/001.png\t4\n\ndog\t2\ncat/000.png\t5\n"),
        ("l.json", json.dumps({"cat": 4, "cat/000.png": "5", "dog": 2})),
    ],
)
def test_a_label_file_overrides_the_folders(tmp_path, name, text):
    root = folder(tmp_path / "images", 2)
    (tmp_path / name).write_text(text)
    data = open_dataset(DataSection(images=root, labels=str(tmp_path / name)), SPEC)
    expected = {"l.csv": [5, 4, 2, 4], "l.tsv": [5, 4, 5, 2], "l.json": [5, 4, 2, 2]}[name]
    assert data.labels.tolist() == expected and data.classes is None


def test_class_names_in_a_label_file_are_numbered_in_sorted_order(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", 1)
    (tmp_path / "labels.csv").write_text("a.png,owl\nb.png,ant\nc.png,bee\n")
    section = DataSection(images=str(tmp_path), labels=str(tmp_path / "labels.csv"))
    data = open_dataset(section, SPEC)
    assert data.classes == ("ant", "bee", "owl") and data.labels.tolist() == [2, 0]
    assert any("3 class names, numbered in sorted order" in note for note in data.notes)


def test_count_and_take_choose_files(tmp_path):
    section = DataSection(images=folder(tmp_path, 3), take={"every": 2}, count=2)
    data = open_dataset(section, SPEC)
    assert data.names == ("cat/000.png", "cat/002.png") and data.count == 2


def test_the_guess_is_announced_and_keeps_images_of_the_right_size(tmp_path):
    data = open_dataset(DataSection(images=folder(tmp_path)), SPEC)
    (note,) = data.notes
    assert "ImageNet-style preprocessing guessed from the input shape [N, 3, 8, 8]" in note
    assert "resize" not in note and "0.485" in note and "set `preprocess`" in note


def test_the_guess_resizes_and_crops_other_images(tmp_path):
    picture(tmp_path / "a.png", size=(30, 20))
    spec = {"input": InputSpec("input", ("N", 3, 14, 14), "float32")}
    data = open_dataset(DataSection(images=str(tmp_path)), spec)
    assert "resize: 16, crop: 14" in data.notes[0] and gather(data).shape == (1, 3, 14, 14)


@pytest.mark.parametrize(
    ("shape", "size", "words", "got"),
    [
        (("N", 1, 8, 8), (8, 8), "plain preprocessing", (1, 1, 8, 8)),
        (("N", 8, 8, 3), (8, 8), "layout: nhwc", (1, 8, 8, 3)),
        ((None, 3, 6, 9), (8, 8), "resize: [6, 9]", (1, 3, 6, 9)),
        ((None, 3, None, None), (9, 7), "ImageNet-style", (1, 3, 9, 7)),
    ],
)
def test_other_inputs_are_guessed_too(tmp_path, shape, size, words, got):
    picture(tmp_path / "a.png", size=size)
    spec = {"input": InputSpec("input", shape, "float32")}
    data = open_dataset(DataSection(images=str(tmp_path)), spec)
    assert words in data.notes[0] and gather(data).shape == got


@pytest.mark.parametrize(
    ("how", "shape", "words"),
    [
        ({}, (3, 16, 16), r"shape \[3, 8, 8\]; .*\[N, 3, 16, 16\].*\{resize: 18, crop: 16\}"),
        ({}, (3, 6, 9), r"\{resize: \[6, 9\]\}"),
        ({}, (1, 8, 8), r"set `preprocess: \{color: gray\}`"),
        ({"color": "gray"}, (3, 8, 8), r"set `preprocess: \{color: rgb\}`"),
        ({}, (8, 8, 3), r"set `preprocess: \{layout: nhwc\}`"),
        ({}, (5,), "use `arrays`"),
    ],
)
def test_a_shape_that_does_not_fit_is_named_with_the_remedy(tmp_path, how, shape, words):
    picture(tmp_path / "a.png")
    spec = {"input": InputSpec("input", ("N", *shape), "float32")}
    section = DataSection(images=str(tmp_path), preprocess=how | PLAIN)
    with pytest.raises(DataError, match=words) as caught:
        gather(open_dataset(section, spec))
    assert str(tmp_path / "a.png") in str(caught.value) and "`input`" in str(caught.value)


def test_images_of_two_sizes_do_not_fit_a_dynamic_input(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", size=(9, 8))
    spec = {"input": InputSpec("input", ("N", 3, "H", "W"), "float32")}
    section = DataSection(images=str(tmp_path), preprocess=PLAIN)
    with pytest.raises(DataError, match=r"b\.png: .* is 9x8, those before it are 8x8.*resize"):
        gather(open_dataset(section, spec))


def test_several_inputs_need_arrays(tmp_path):
    specs = SPEC | {"mask": InputSpec("mask", ("N",), "float32")}
    with pytest.raises(DataError, match=r"has 2 \(input, mask\).*`arrays`; or, .*mask: \{constant"):
        open_dataset(DataSection(images=folder(tmp_path)), specs)


def test_an_input_called_label_cannot_have_labels(tmp_path):
    specs = {"label": InputSpec("label", ("N", 3, 8, 8), "float32")}
    with pytest.raises(DataError, match=r"an input called `label`.*without labels"):
        open_dataset(DataSection(images=folder(tmp_path)), specs)


def test_the_dtype_must_be_the_input_s(tmp_path):
    spec = {"input": InputSpec("input", ("N", 3, 8, 8), "uint8")}
    section = DataSection(images=folder(tmp_path), preprocess="cifar10")
    with pytest.raises(DataError, match=r"gives float32, .*`input` uint8.*\{dtype: uint8"):
        open_dataset(section, spec)
