"""The wav reader: a folder of recordings, or of class folders; raw samples or log-mel."""

import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd
from pathlib import Path

import numpy as np

from qtool.data.config import DataSection
from qtool.data.dataset import Batch, Dataset, InputSpec, Opening, cast, show_shape
from qtool.data.labels import read_labels
from qtool.data.reader_options import LogMel, Wav
from qtool.data.readers.folders import Kind, file_digest, folder_labels, list_samples
from qtool.data.readers.mel import frame_count, log_mel, samples_of, shortest
from qtool.errors import DataError

RECORDINGS = Kind("wav", "recording", "a recording", (".wav", ".wave"))
UNKNOWN_SIZE = (0, 0xFFFFFFFF)
"""What programs that write to a pipe leave for the size in a header."""


@dataclass(frozen=True, eq=False)
class WavSource:
    """Recordings that become one model input.

    Attributes:
        paths: the files.
        spec: the model's input.
        rate: samples a second that the model wants.
        samples: how many of them each sample has.
        given: the recipe's words.
        shape: of one sample as the model wants it.
        known: digests by position, filled as they are asked for.
    """

    paths: tuple[Path, ...]
    spec: InputSpec
    rate: int
    samples: int
    given: Wav
    shape: tuple[int, ...]
    known: dict[int, str] = field(default_factory=dict)

    def stream(self, positions: Sequence[int], size: int) -> Iterator[Batch]:
        """Yield batches of at most ``size`` recordings, in order."""
        for start in range(0, len(positions), size):
            rows = [self._row(self.paths[k]) for k in positions[start : start + size]]
            yield {self.spec.name: cast(np.stack(rows), self.spec, self.given.path)}

    def digest(self, position: int) -> str:
        """The sha256 of the file's bytes."""
        if position not in self.known:
            path = self.paths[position]
            try:
                self.known[position] = file_digest(path)
            except OSError as error:
                raise _damaged(path, str(error)) from error
        return self.known[position]

    def _row(self, path: Path) -> np.ndarray:
        signal, rate = read_wav(path)
        signal = fit(resample(signal, rate, self.rate), self.samples, self.given.align)
        how = self.given.log_mel
        row = signal if how is None else log_mel(signal, self.rate, how)
        return row.astype(np.float32).reshape(self.shape)


def open_wav(section: DataSection, inputs: Mapping[str, InputSpec], opening: Opening) -> Dataset:
    """Open a folder of recordings for a model with one input.

    Class folders give the labels as for images; ``labels`` overrides them.

    Raises:
        DataError: no folder, a file that is no recording, rates that differ, or a length that the
            model does not take.
    """
    assert section.wav is not None  # the section chose this reader
    given, root = section.wav, Path(section.wav.path)
    if len(inputs) != 1:
        raise DataError(
            f"{root}: recordings feed one input, the model has {len(inputs)} "
            f"({', '.join(inputs)}); expected one: save all inputs as .npz and use `arrays`"
        )
    (spec,) = inputs.values()
    label_file = Path(section.labels) if section.labels is not None else None
    listed, classes = list_samples(root, RECORDINGS, label_file)
    chosen, notes = section.choose(len(listed))
    names = tuple(listed[k] for k in chosen)
    labels: np.ndarray | None = None
    if label_file is not None:
        labels, classes, more = read_labels(label_file, names)
        notes += more
    elif classes is not None:
        labels = folder_labels(names, classes)
    paths = tuple(root / name for name in names)
    rate, said = _survey(paths, given)
    samples, shape = _sizes(given, spec)
    _check_band(given.log_mel, rate)
    source = WavSource(paths, spec, rate, samples, given, shape)
    length = f"recordings are cut or padded to {samples} samples, {samples / rate:.3g} s"
    return Dataset(
        names, source, tuple(range(len(names))), labels, classes, (*notes, *said, length)
    )


def read_wav(path: Path) -> tuple[np.ndarray, int]:
    """Read one file: 8, 16, 24 and 32 bit integers, 32 and 64 bit floats; channels are averaged.

    Returns:
        Samples float64 [n], between -1 and 1 for integers, and how many there are a second.

    Raises:
        DataError: the file is damaged or of another kind, or scipy is not installed.
    """
    found, rate = _read(path)
    if found.dtype == np.uint8:
        signal = (found.astype(np.float64) - 128) / 128
    elif found.dtype.kind == "i":  # scipy shifts 24 bits to the top of 32
        signal = found.astype(np.float64) / -float(np.iinfo(found.dtype).min)
    else:
        signal = found.astype(np.float64)
    if not np.isfinite(signal).all():
        raise DataError(
            f"{path}: holds NaN or Inf; expected finite samples: repair or remove the file"
        )
    return signal.mean(axis=1) if signal.ndim == 2 else signal, rate


def _read(path: Path, only_header: bool = False) -> tuple[np.ndarray, int]:
    """The samples as they are stored, mapped where that can be; checked to be whole."""
    try:
        from scipy.io import wavfile
    except ImportError as error:
        raise DataError(
            f"{path}: recordings need the package scipy, which is not installed; expected it: "
            "pip install 'qtool[audio]'"
        ) from error
    try:
        _check_whole(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks it does not know
            try:
                rate, found = wavfile.read(path, mmap=only_header)
            except ValueError:
                if not only_header:
                    raise
                rate, found = wavfile.read(path)  # 24 bits cannot be mapped
    except DataError:
        raise
    except MemoryError as error:
        raise _damaged(path, "it needs more memory than there is") from error
    except Exception as error:  # scipy raises many kinds on damaged headers
        raise _damaged(path, str(error)) from error
    if found.size == 0 or rate <= 0:
        raise _damaged(path, f"{found.size} samples at {rate} Hz")
    return found, int(rate)


def _check_whole(path: Path) -> None:
    """Refuse a file that is shorter than its header says; scipy takes what is there."""
    with path.open("rb") as file:
        head, size = file.read(12), path.stat().st_size
        if head[:4] not in (b"RIFF", b"RIFX", b"RF64") or head[8:] != b"WAVE":
            raise _damaged(path, "it does not begin as a RIFF WAVE file")
        order = ">I" if head[:4] == b"RIFX" else "<I"
        header, start = head[:8], 8
        while len(header) == 8:
            (length,) = struct.unpack(order, header[4:])
            if length not in UNKNOWN_SIZE and start + length > size + 1:
                raise _damaged(path, f"{size} bytes, its header promises {start + length}")
            if header[:4] == b"data":
                return
            file.seek(12 if start == 8 else start + length + length % 2)
            header, start = file.read(8), file.tell()


def _damaged(path: Path, what: str) -> DataError:
    return DataError(
        f"{path}: the recording cannot be read ({what}); expected a whole .wav file of PCM or "
        "float samples: remove or replace it"
    )


def resample(signal: np.ndarray, have: int, want: int) -> np.ndarray:
    """Change the rate with scipy's polyphase filter; the same rate leaves the signal as it is."""
    if have == want:
        return signal
    from scipy.signal import resample_poly

    common = gcd(have, want)
    found: np.ndarray = resample_poly(signal, want // common, have // common)
    return found


def fit(signal: np.ndarray, samples: int, align: str) -> np.ndarray:
    """Cut or pad with zeros to a length, keeping the start or the centre in place."""
    spare = len(signal) - samples
    before = abs(spare) // 2 if align == "center" else 0
    if spare >= 0:
        return signal[before : before + samples]
    return np.pad(signal, (before, -spare - before))


def _survey(paths: Sequence[Path], given: Wav) -> tuple[int, tuple[str, ...]]:
    """Read the headers: the rate, and what is done to files that differ."""
    rates: dict[int, Path] = {}
    wide = resampled = 0
    for path in paths:
        found, rate = _read(path, only_header=True)
        rates.setdefault(rate, path)
        wide += found.ndim == 2
        resampled += given.rate is not None and rate != given.rate
    if given.rate is None and len(rates) > 1:
        listed = ", ".join(f"{rate} Hz ({path.name})" for rate, path in rates.items())
        raise DataError(
            f"{given.path}: the recordings have the rates {listed}; expected one: set "
            f"`wav: {{rate: {min(rates)}}}` to resample"
        )
    count = len(paths)
    notes = [f"{wide} of {count} recordings have several channels; they are averaged"] * (wide > 0)
    if resampled:
        notes.append(f"{resampled} of {count} recordings are resampled to {given.rate} Hz")
    return given.rate or next(iter(rates)), tuple(notes)


def _sizes(given: Wav, spec: InputSpec) -> tuple[int, tuple[int, ...]]:
    """Samples of every recording, and the shape the model's input gives to what is made of them."""
    dims, how = spec.shape[1:], given.log_mel
    kept = 1 if how is None else 2
    wrong = f"{given.path}: the model's input is {spec.describe()}; "
    if len(dims) < kept or any(
        dim not in (1, None) and isinstance(dim, int) for dim in dims[:-kept]
    ):
        what = "[N, samples]" if how is None else "[N, mels, frames]"
        other = "; set `wav: {log_mel: {..}}`" if how is None else ""
        raise DataError(f"{wrong}expected {what}, with axes of 1 between{other}")
    time = dims[-1] if how is None or how.layout == "mel_time" else dims[-2]
    samples = given.samples
    if samples is None and isinstance(time, int):
        samples = time if how is None else samples_of(time, how)
    if samples is None:
        raise DataError(
            f"{wrong}recordings do not settle how long a sample is: set `wav: {{samples: 16000}}`"
        )
    if how is None:
        own: tuple[int, ...] = (samples,)
    elif samples < shortest(how):
        raise DataError(
            f"{given.path}: {samples} samples are fewer than one frame of n_fft {how.n_fft}; "
            f"expected at least {shortest(how)}: set `wav: {{samples: ..}}`"
        )
    else:
        own = (how.mels, frame_count(samples, how))
        own = own if how.layout == "mel_time" else own[::-1]
    shape = (1,) * (len(dims) - kept) + own
    if not spec.fits(shape):
        raise DataError(
            f"{wrong}a recording of {samples} samples becomes {show_shape(shape)}: expected it to "
            "fit: "
            + ("set `wav: {samples: ..}`" if how is None else "correct `wav: {log_mel: ..}`")
        )
    return samples, shape


def _check_band(how: LogMel | None, rate: int) -> None:
    """Refuse a band that is empty at this rate."""
    if how is None:
        return
    top = rate / 2 if how.fmax is None else how.fmax
    if top > rate / 2 or how.fmin >= top:
        raise DataError(
            f"wav.log_mel: the band {how.fmin:g}..{top:g} Hz does not fit a rate of {rate} Hz; "
            f"expected fmin below fmax, and fmax up to {rate / 2:g}: correct it"
        )
