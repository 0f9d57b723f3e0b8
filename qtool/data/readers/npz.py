"""Read .npy and .npz files: headers first, values on first use."""

import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from qtool.errors import DataError

LOCAL_HEADER = 30
"""Bytes of a zip entry's fixed local header; the name and an extra field follow."""


DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    KeyError,
    RuntimeError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
)
"""The exceptions that zipfile, zlib and numpy raise on damaged files."""


@dataclass(frozen=True)
class Column:
    """One array of a file, described by its header.

    Attributes:
        path: the file.
        member: the array's name inside a .npz; None for a .npy file.
        shape: its shape, the sample axis first.
        dtype: its element type.
        order: "C" or "F", as stored.
        offset: where its values start in the file; None where they are compressed.
    """

    path: Path
    member: str | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: str
    offset: int | None

    @property
    def name(self) -> str:
        """The name of the array in messages."""
        return f"{self.path}" if self.member is None else f"{self.path}: array `{self.member}`"

    def values(self) -> np.ndarray:
        """Read the array: mapped from the file where it is stored uncompressed."""
        try:
            if self.offset is not None and 0 not in self.shape:
                order: Any = self.order
                return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order=order)
            with np.load(self.path, allow_pickle=False) as archive:
                return archive[self.member]
        except MemoryError as error:
            size = self.dtype.itemsize * int(np.prod(self.shape, dtype=object)) / 2**30
            raise DataError(
                f"{self.name}: needs {size:.1f} GiB once decompressed, more than there is; save it "
                "with np.savez (uncompressed, then it is read in place) or in several files"
            ) from error
        except DAMAGE as error:
            raise DataError(_damaged(self.name, error)) from error


def _damaged(where: str, error: object) -> str:
    return f"{where}: damaged ({error}); expected what np.save or np.savez writes: save it again"


def read_columns(path: Path) -> dict[str, Column]:
    """Read the headers of a .npy (under the name "") or .npz file.

    Args:
        path: the file.

    Raises:
        DataError: the file is missing, damaged, of another kind, or holds Python objects.
    """
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                column = _column(path, None, file, 0)
            _check_size(column, path.stat().st_size - (column.offset or 0))
            return {"": column}
        return _read_archive(path)
    except DAMAGE as error:
        raise DataError(_damaged(str(path), error)) from error


def _read_archive(path: Path) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name == info.filename:
                raise DataError(
                    f"{path}: holds `{name}`, which is no array; expected what np.savez writes"
                )
            start: int | None = None
            if info.compress_type == zipfile.ZIP_STORED:
                raw.seek(info.header_offset)
                header = raw.read(LOCAL_HEADER)
                lengths = np.frombuffer(header, "<u2", 2, offset=26)
                start = info.header_offset + LOCAL_HEADER + int(lengths.sum())
            with archive.open(info) as file:
                column = _column(path, name, file, start)
                _check_size(column, info.file_size - file.tell())
            columns[name] = column
    return columns


def _column(path: Path, member: str | None, file: IO[bytes], start: int | None) -> Column:
    """Read one array header; ``start`` is where the file object's byte 0 lies in the real file."""
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in read:
        raise ValueError(f"array format {version}, expected one of {sorted(read)}")
    shape, fortran, dtype = read[version](file)
    column = Column(
        path,
        member,
        tuple(shape),
        dtype,
        "F" if fortran else "C",
        None if start is None else start + file.tell(),
    )
    if dtype.hasobject:
        raise DataError(
            f"{column.name}: holds Python objects, which are never unpickled; expected numbers: "
            "save it with a numeric dtype"
        )
    return column


def _check_size(column: Column, have: int) -> None:
    """Refuse a file whose header states more values than follow."""
    expected = column.dtype.itemsize * int(np.prod(column.shape, dtype=object))
    if have < expected or min(column.shape, default=0) < 0:
        raise DataError(
            _damaged(column.name, f"{have} bytes of values, the header says {expected}")
        )
