"""Decode .wav files, change their rate, and fit them to a length."""

import struct
import warnings
from math import gcd
from pathlib import Path

import numpy as np

from qtool.errors import DataError, SampleError

UNKNOWN_SIZE = (0, 0xFFFFFFFF)
"""The sizes that programs write into a header when they write to a pipe."""


def read_wav(path: Path) -> tuple[np.ndarray, int]:
    """Read one file: 8, 16, 24 and 32 bit integers, 32 and 64 bit floats; channels are averaged.

    Args:
        path: the file.

    Returns:
        Samples float64 [n], between -1 and 1 for integers, and how many there are a second.

    Raises:
        DataError: the file is damaged or of another kind, or holds NaN or infinity.
    """
    stored, rate = read_stored(path)
    _require_finite(stored, path)
    if stored.dtype == np.uint8:
        signal = (stored.astype(np.float64) - 128) / 128
    elif stored.dtype.kind == "i":  # scipy shifts 24 bits to the top of 32
        signal = stored.astype(np.float64) / -float(np.iinfo(stored.dtype).min)
    else:
        signal = stored.astype(np.float64)
    return signal.mean(axis=1) if signal.ndim == 2 else signal, rate


def check_finite(path: Path) -> None:
    """Check that a file holds no NaN and no infinity, which only files of floats can.

    Args:
        path: the file.

    Raises:
        SampleError: it does.
        DataError: the file is damaged or of another kind.
    """
    _require_finite(read_stored(path, only_header=True)[0], path)


def _require_finite(stored: np.ndarray, path: Path) -> None:
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        raise SampleError(
            f"{path}: holds NaN or Inf; expected finite samples: repair or remove the file"
        )


def read_stored(path: Path, only_header: bool = False) -> tuple[np.ndarray, int]:
    """Read the samples as they are stored, mapped where possible; refuse a damaged file."""
    from scipy.io import wavfile

    try:
        _check_whole(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # unknown chunks
            try:
                rate, stored = wavfile.read(path, mmap=only_header)
            except ValueError:
                if not only_header:
                    raise
                rate, stored = wavfile.read(path)  # 24 bits cannot be mapped
    except DataError:
        raise
    except MemoryError as error:
        raise damaged(path, "it needs more memory than there is") from error
    except Exception as error:  # scipy raises many kinds on damaged headers
        raise damaged(path, str(error)) from error
    if stored.size == 0 or rate <= 0:
        raise damaged(path, f"{stored.size} samples at {rate} Hz")
    return stored, int(rate)


def _check_whole(path: Path) -> None:
    """Refuse a file that is shorter than its header says; scipy would read the rest."""
    with path.open("rb") as file:
        head, size = file.read(12), path.stat().st_size
        if head[:4] not in (b"RIFF", b"RIFX", b"RF64") or head[8:] != b"WAVE":
            raise damaged(path, "it does not begin as a RIFF WAVE file")
        order = ">I" if head[:4] == b"RIFX" else "<I"
        header, start = head[:8], 8
        while len(header) == 8:
            (length,) = struct.unpack(order, header[4:])
            if length not in UNKNOWN_SIZE and start + length > size + 1:
                raise damaged(path, f"{size} bytes, its header says {start + length}")
            if header[:4] == b"data":
                return
            file.seek(12 if start == 8 else start + length + length % 2)
            header, start = file.read(8), file.tell()


def damaged(path: Path, what: str) -> DataError:
    """Return the error about a file that cannot be read."""
    return DataError(
        f"{path}: the recording cannot be read ({what}); expected a whole .wav file of PCM or "
        "float samples: remove or replace it"
    )


def resample(signal: np.ndarray, rate: int, target_rate: int) -> np.ndarray:
    """Change the rate with scipy's polyphase filter; the same rate leaves the signal as it is.

    Args:
        signal: float [samples].
        rate: its samples a second.
        target_rate: those of the result.
    """
    if rate == target_rate:
        return signal
    from scipy.signal import resample_poly

    common = gcd(rate, target_rate)
    resampled: np.ndarray = resample_poly(signal, target_rate // common, rate // common)
    return resampled


def fit(signal: np.ndarray, samples: int, align: str) -> np.ndarray:
    """Cut or pad a signal with zeros to a length.

    Args:
        signal: float [any length].
        samples: the length of the result.
        align: "start" or "center", the part that stays in place.
    """
    spare = len(signal) - samples
    before = abs(spare) // 2 if align == "center" else 0
    if spare >= 0:
        return signal[before : before + samples]
    return np.pad(signal, (before, -spare - before))
