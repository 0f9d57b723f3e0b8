"""Damaged, disguised and oversized data: always one sentence that names the file and the remedy."""

import pickle
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from qtool.data import DataSection, InputSpec, open_dataset
from qtool.data.readers.decode import looks_whole
from qtool.errors import DataError, SampleError

SPEC = {"input": InputSpec("input", ("N", 3, 64, 64), "float32")}
ROWS = {"input": InputSpec("input", ("N", 4), "float32")}
X = np.ones((5, 4), np.float32)


def read_images(root, **section):
    section = {"preprocess": "cifar10"} | section
    data = open_dataset(DataSection(images=str(root), **section), SPEC, workers=2)
    return [batch["input"] for batch in data.batches(2)]


def read_rows(path, **section):
    data = open_dataset(DataSection(arrays={"path": str(path)} | section), ROWS)
    return [batch["input"] for batch in data.batches(2)]


def jpeg(path, size=(64, 64)):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")
    return path.read_bytes()


def png(width, height):
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(b"\0" * 999))
        + chunk(b"IEND", b"")
    )


def refused(call, where, words):
    with pytest.raises(DataError, match=words) as caught:
        call()
    text = str(caught.value)
    assert str(where) in text and "expected" in text and "\n" not in text
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_truncated_jpeg(tmp_path, share):
    whole = jpeg(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(whole[: int(share * len(whole))])
    refused(lambda: read_images(tmp_path), tmp_path / "b.jpg", "cannot be read.*replace it")


def test_a_png_whose_pixels_end_early(tmp_path):
    (tmp_path / "a.png").write_bytes(png(64, 64))
    refused(lambda: read_images(tmp_path), tmp_path / "a.png", "cannot be read")


@pytest.mark.parametrize("content", [b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a"])
def test_a_file_that_only_claims_to_be_an_image(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    for section in ({}, {"preprocess": None}):
        refused(lambda given=section: read_images(tmp_path, **given), tmp_path / "a.png", "image")


def test_postscript_is_never_handed_to_an_interpreter(tmp_path):
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n"
    )
    refused(lambda: read_images(tmp_path), tmp_path / "a.png", "the content is no image")


def test_an_empty_file(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    refused(lambda: read_images(tmp_path), tmp_path / "a.png", "the file is empty")


@pytest.mark.parametrize("side", [60000, 14000])
def test_an_image_bomb(tmp_path, side):
    (tmp_path / "a.png").write_bytes(png(side, side))
    refused(lambda: read_images(tmp_path), tmp_path / "a.png", "more than 89478485 pixels")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_bomb_where_pillow_only_warns(tmp_path):
    (tmp_path / "a.png").write_bytes(png(10000, 10000))
    refused(lambda: read_images(tmp_path), tmp_path / "a.png", "more than 89478485 pixels")


def test_a_sliver_that_resizing_would_blow_up(tmp_path):
    Image.new("RGB", (20000, 1)).save(tmp_path / "a.png")
    refused(
        lambda: read_images(tmp_path, preprocess={"resize": 256, "crop": 64}),
        tmp_path / "a.png",
        "would be resized to, more than",
    )


def test_sixteen_bit_pixels_are_not_clipped_in_silence(tmp_path):
    Image.fromarray(np.full((64, 64), 40000, np.uint16)).save(tmp_path / "a.png")
    refused(lambda: read_images(tmp_path), tmp_path / "a.png", "mode I;16.*use `arrays`")


def test_an_image_smaller_than_the_crop(tmp_path):
    jpeg(tmp_path / "a.jpg", (20, 30))
    refused(
        lambda: read_images(tmp_path, preprocess={"crop": 64}),
        tmp_path / "a.jpg",
        "20x30 before cropping, expected at least `crop: 64`; set `resize`",
    )


def test_a_stranger_among_the_images(tmp_path):
    (tmp_path / "cat").mkdir()
    jpeg(tmp_path / "cat" / "a.jpg")
    (tmp_path / "README").write_text("x")
    data = open_dataset(DataSection(images=str(tmp_path), preprocess="cifar10"), SPEC)
    assert data.names == ("cat/a.jpg",)
    assert f"1 files of {tmp_path} are no images by their names, left out: README" in data.notes
    (tmp_path / "cat" / "notes.txt").write_text("x")
    words = "README: not an image by its name, as 2 of 3 files, expected at most 10%.*move"
    refused(lambda: read_images(tmp_path), "README", words)
    (tmp_path / "README").unlink()
    (tmp_path / "cat" / "a.jpg").unlink()
    refused(lambda: read_images(tmp_path), "cat/notes.txt", "as 1 of 1 files")


FORMATS = "PNG JPEG BMP GIF TIFF WEBP PPM JPEG2000"


@pytest.mark.parametrize("form", FORMATS.split())
def test_only_damaged_bytes_look_damaged(tmp_path, form):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, form)
    whole = path.read_bytes()
    assert looks_whole(whole)
    if form in ("PNG", "JPEG", "GIF", "WEBP"):
        assert not looks_whole(whole[: len(whole) // 2])
    assert not looks_whole(b"") and not looks_whole(b"Please read me")


def test_a_damaged_image_is_refused_by_its_digest(tmp_path):
    """Digests are computed before any work; a JPEG with more behind its end stays."""
    whole = jpeg(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(whole + bytes(2000))
    (tmp_path / "c.jpg").write_bytes(whole[:-200])
    flipped = bytearray(png(64, 64))
    flipped[50] ^= 1  # in the pixels, whose checksum says so
    (tmp_path / "d.png").write_bytes(flipped)
    data = open_dataset(DataSection(images=str(tmp_path), preprocess="cifar10"), SPEC)
    assert len(data.take([0, 1]).digests()) == 2
    for index, name in ((2, "c.jpg"), (3, "d.png")):
        with pytest.raises(SampleError, match=f"{name}: the image cannot be read"):
            data.take([index]).digests()


def test_images_among_class_folders(tmp_path):
    (tmp_path / "cat").mkdir()
    jpeg(tmp_path / "cat" / "a.jpg")
    jpeg(tmp_path / "b.jpg")
    refused(lambda: read_images(tmp_path), tmp_path, r"1 images \(first: b.jpg\) and 1 folders")


def test_folders_without_images(tmp_path):
    refused(lambda: read_images(tmp_path / "no"), tmp_path / "no", "found nothing, .*correct")
    refused(lambda: read_images(tmp_path), tmp_path, "holds no image")
    (tmp_path / "cat").mkdir()
    refused(lambda: read_images(tmp_path), tmp_path, "holds no image")


def test_a_file_that_vanishes_after_opening(tmp_path):
    jpeg(tmp_path / "a.jpg")
    data = open_dataset(DataSection(images=str(tmp_path), preprocess="cifar10"), SPEC)
    (tmp_path / "a.jpg").unlink()
    refused(lambda: list(data.batches(1)), tmp_path / "a.jpg", "cannot be read")


def test_a_link_that_leads_nowhere(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    data = open_dataset(DataSection(images=str(tmp_path), preprocess="cifar10"), SPEC)
    refused(lambda: list(data.batches(1)), tmp_path / "a.jpg", "cannot be read")
    refused(data.digests, tmp_path / "a.jpg", "cannot be read")


def test_links_to_folders_are_followed_and_loops_refused(tmp_path):
    inner = tmp_path / "images" / "a"
    inner.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    jpeg(inner / "a.jpg")
    jpeg(tmp_path / "elsewhere" / "b.jpg")
    (inner / "more").symlink_to(tmp_path / "elsewhere")
    section = DataSection(images=str(tmp_path / "images"), preprocess="cifar10")
    assert open_dataset(section, SPEC).names == ("a/a.jpg", "a/more/b.jpg")
    for loop, target in ((inner / "up", ".."), (tmp_path / "images" / "self", ".")):
        loop.symlink_to(target)
        refused(lambda: open_dataset(section, SPEC), loop, "which holds it")
        loop.unlink()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("l.csv", "a.jpg,1\n", r"1 of 2 images have no label \(first: b.jpg\)"),
        ("l.csv", "a.jpg;1\n", r"l.csv:1: found .*expected two columns"),
        ("l.csv", "a.jpg,1\na.jpg,2\n", r"l.csv:2: a.jpg has the labels 1 and 2"),
        ("l.csv", "a.jpg\x00,\x001\n\xff", "l.csv"),
        ("l.json", "[1, 2]", "found a JSON list"),
        ("l.json", "{", "cannot be read as labels"),
        ("l.json", '{"a.jpg": 1.5}', "the label of 'a.jpg' is 1.5"),
        ("missing.csv", None, "cannot be read as labels"),
    ],
)
def test_label_files_that_do_not_serve(tmp_path, name, text, words):
    (tmp_path / "images").mkdir()
    jpeg(tmp_path / "images" / "a.jpg")
    jpeg(tmp_path / "images" / "b.jpg")
    if text is not None:
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    refused(lambda: read_images(tmp_path / "images", labels=str(tmp_path / name)), name, words)


def test_nothing_is_ever_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    objects = np.array([Bomb(), Bomb()], dtype=object)
    np.savez(tmp_path / "a.npz", x=objects)
    np.save(tmp_path / "a.npy", objects)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Bomb()))
    refused(lambda: read_rows(tmp_path / "a.npz"), "a.npz: array `x`", "Python objects")
    refused(lambda: read_rows(tmp_path / "a.npy"), "a.npy", "Python objects")
    refused(lambda: read_rows(tmp_path / "b.npy"), "b.npy", "damaged")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(tmp_path, value):
    rows = X.copy()
    rows[3, 1] = value
    np.savez(tmp_path / "a.npz", x=rows)
    refused(lambda: read_rows(tmp_path / "a.npz"), "a.npz[3]", "`input` hold NaN or Inf.*repair")


def test_a_double_too_large_for_float32(tmp_path):
    np.savez(tmp_path / "a.npz", x=X.astype(np.float64) * 1e300)
    refused(lambda: read_rows(tmp_path / "a.npz"), "a.npz[0]", r"NaN or Inf \(as float32\)")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("keep", [0, 10, 100, -200, -30])
def test_a_truncated_archive(tmp_path, keep, compressed):
    (np.savez_compressed if compressed else np.savez)(tmp_path / "a.npz", x=X, y=X)
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[:keep])
    refused(lambda: read_rows(tmp_path / "a.npz"), tmp_path / "a.npz", "damaged.*save it again")


def test_a_flipped_byte_in_a_compressed_array(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.random.default_rng(0).random((50, 4)))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(content)
    refused(lambda: read_rows(tmp_path / "a.npz"), "a.npz", "damaged")


@pytest.mark.parametrize("shape", ["((((", "(10**12, 4)", "(1000000000000, 4)", "(-1, 4)", "'x'"])
def test_a_header_that_promises_more_than_there_is(tmp_path, shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 80
    (tmp_path / "a.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
    refused(lambda: read_rows(tmp_path / "a.npy"), "a.npy", "damaged")
    refused(lambda: read_rows(tmp_path / "a.npz"), "a.npz", "damaged")


def test_other_files_given_as_arrays(tmp_path):
    (tmp_path / "a.npz").write_text("hello")
    (tmp_path / "a.csv").write_text("1,2")
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as archive:
        archive.writestr("readme.txt", "x")
    (tmp_path / "none").mkdir()
    refused(lambda: read_rows(tmp_path / "a.npz"), "a.npz", "damaged")
    refused(lambda: read_rows(tmp_path / "z.npz"), "z.npz", "`readme.txt`, which is no array")
    refused(lambda: read_rows(tmp_path / "a.csv"), "a.csv", "expected a .npy or .npz file")
    refused(lambda: read_rows(tmp_path / "none"), "none", "holds no .npz file")


def test_files_of_a_folder_that_differ(tmp_path):
    np.savez(tmp_path / "a.npz", x=X)
    np.savez(tmp_path / "b.npz", z=X)
    refused(lambda: read_rows(tmp_path), "b.npz", "holds no array `x`; .* found z float32")
