"""Full disks, folders that refuse, another user: exit code, message, and nothing half-written."""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from fuzz.limited import Ended, Limits, qtool_main, run_limited
from models import residual

LIMITS = Limits(seconds=60, memory_mb=2000)
WORDS = ("ptq", "m.onnx", "d.npz", "--threads", "1", "--quiet", "--out")
NOBODY = 65534
# Of sched.h and sys/mount.h.
NEW_MOUNTS, NEW_USERS, PRIVATE = 0x20000, 0x10000000, (1 << 18) | (1 << 14)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("disks")
    return write_inputs(folder)


def write_inputs(folder: Path) -> Path:
    onnx.save(residual().proto(), folder / "m.onnx")
    x = np.random.default_rng(0).normal(size=(24, 4, 8, 8)).astype(np.float32)
    np.savez(folder / "d.npz", x=x)
    return folder


def mount_small_disk(folder: Path, size: str) -> None:
    """Mount a disk of some size for this process alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={size}".encode()
    if (
        libc.unshare(NEW_MOUNTS | (NEW_USERS if os.geteuid() else 0))
        or libc.mount(None, b"/", None, PRIVATE, None)
        or libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options)
    ):
        raise OSError(ctypes.get_errno(), "no disk can be mounted")


def on_small_disk(inputs: Path, tmp_path: Path, size: str, out: str, *words: str) -> Ended:
    """Run with a disk of some size on ``disk``; what is left on it is printed last."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def call() -> int:
        try:
            mount_small_disk(disk, size)
        except OSError:
            return 77
        code = qtool_main(inputs, *WORDS, str(tmp_path / out), *words)
        left = sorted(str(path.relative_to(disk)) for path in disk.rglob("*"))
        print(f"\nleft: {left}", flush=True)
        return code

    ended = run_limited(call, tmp_path / "log.txt", LIMITS)
    if ended.code == 77:
        pytest.skip("no disk can be mounted here")
    return ended


# What is being written when the disk is full: the stage cache, captures, the profile, the report.
@pytest.mark.parametrize(
    "size",
    [
        "96k",
        *(pytest.param(f"{kb}k", marks=pytest.mark.slow) for kb in (4, 32, 64, 128, 200, 256, 320)),
    ],
)
def test_a_full_disk_is_said_and_nothing_is_left(inputs, tmp_path, size):
    ended = on_small_disk(inputs, tmp_path, size, "disk/run")
    assert ended.code == 2, ended.text
    assert "qtool: error: " in ended.text and "left: []\n" in ended.text
    assert "free space" in ended.text or "No space left" in ended.text


@pytest.mark.slow
def test_a_disk_that_suffices(inputs, tmp_path):
    ended = on_small_disk(inputs, tmp_path, "2M", "disk/run", "--set", "ptq=[]")
    assert ended.code == 0, ended.text
    assert "'run/model.onnx'" in ended.text and "'run/report.json'" in ended.text


@pytest.mark.parametrize("out", ["/proc/qtool", "/dev/null", "/dev/null/run"])
def test_places_that_are_no_folders(inputs, tmp_path, out):
    ended = run_limited(lambda: qtool_main(inputs, *WORDS, out), tmp_path / "log.txt", LIMITS)
    assert ended.code == 2, ended.text
    assert ended.text.startswith("qtool: error: ") and out in ended.text and "--out" in ended.text


def interpreter_of(user: int) -> str | None:
    """Return an interpreter of this version that another user may run; None where there is none."""
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for python in (sys.executable, f"/usr/bin/{name}", f"/usr/local/bin/{name}"):
        if os.path.exists(python):
            try:
                if not subprocess.run([python, "-c", ""], user=user, group=user).returncode:
                    return python
            except OSError:
                continue
    return None


@pytest.fixture(scope="module")
def others_folder():
    """A folder of root's that all users can read, with a folder ``open`` that all can write to."""
    if os.geteuid():
        pytest.skip("only root can become another user")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        write_inputs(folder)
        (folder / "open").mkdir()
        (folder / "open").chmod(0o777)
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("out", "code"), [("open/run", 0), ("run", 2), ("m.onnx", 2)])
def test_another_user(others_folder, out, code):
    """Without a home; in a folder of its own, in one that it may not write to, on a file."""
    python = interpreter_of(NOBODY)
    if python is None:
        pytest.skip("another user can run no Python here")
    paths = [str(Path(__file__).parents[2]), *(p for p in sys.path if p.endswith("-packages"))]
    environment = {
        "PYTHONPATH": os.pathsep.join(paths),
        "HOME": "/nonexistent",
        "TMPDIR": str(others_folder / "open"),
    }
    before = {path: path.read_bytes() for path in others_folder.iterdir() if path.is_file()}
    ended = subprocess.run(
        [python, "-m", "qtool", *WORDS, out],
        cwd=others_folder,
        env=environment,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        text=True,
        capture_output=True,
    )
    assert ended.returncode == code, ended.stderr
    if code == 0:
        assert ended.stderr == "" and (others_folder / out / "model.onnx").is_file()
        assert [p.name for p in (others_folder / "open").iterdir()] == ["run"]
    else:
        assert ended.stderr.startswith("qtool: error: ") and out in ended.stderr
        left = {path: path.read_bytes() for path in others_folder.iterdir() if path.is_file()}
        assert left == before
