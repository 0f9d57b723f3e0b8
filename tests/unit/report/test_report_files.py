"""Files appear whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from qtool.errors import RecipeError
from qtool.files import atomic_path, write_bytes_atomic, write_text_atomic


def test_writes_bytes_text_and_missing_folders(tmp_path):
    write_bytes_atomic(tmp_path / "a" / "b" / "x.bin", b"\x00\xff")
    write_text_atomic(tmp_path / "x.txt", "grüße\n")
    assert (tmp_path / "a" / "b" / "x.bin").read_bytes() == b"\x00\xff"
    assert (tmp_path / "x.txt").read_bytes() == "grüße\n".encode()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_when_the_writer_raises(tmp_path, error):
    target = tmp_path / "model.onnx"
    target.write_bytes(b"old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_the_file_is_absent_until_the_block_is_over(tmp_path):
    target = tmp_path / "plan.npz"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"x")
        assert not target.exists()
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".npz"
    assert os.listdir(tmp_path) == ["plan.npz"]


def test_a_failed_rename_leaves_nothing(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(RecipeError, match="No space left"):
        write_text_atomic(tmp_path / "report.json", "{}")
    assert os.listdir(tmp_path) == []


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(RecipeError, match="nothing was written"), atomic_path(tmp_path / "x"):
        pass


def test_folders_are_refused_and_links_are_followed(tmp_path):
    with pytest.raises(RecipeError, match="not a regular file"):
        write_text_atomic(tmp_path, "x")
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    link.symlink_to(real)
    write_text_atomic(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_a_parent_that_is_a_file_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RecipeError, match="cannot be written"):
        write_text_atomic(tmp_path / "file" / "report.json", "{}")


def test_devices_are_written_not_replaced():
    write_bytes_atomic("/dev/null", b"gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_rights_follow_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        write_text_atomic(tmp_path / "x", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644
