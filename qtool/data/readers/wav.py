"""The wav reader: a folder of recordings, or of class folders; raw samples or log-mel."""

import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd
from pathlib import Path
from typing import ClassVar

import numpy as np

from qtool.data.class_names import ordered_classes
from qtool.data.dataset import Batch, Dataset, InputSpec, Opening, cast, show_shape
from qtool.data.labels import read_labels
from qtool.data.reader import Reader, Section
from qtool.data.reader_options import LogMel, Wav
from qtool.data.readers.folders import Kind, file_digest, folder_labels, list_samples
from qtool.data.readers.mel import frame_count, log_mel, samples_of, shortest
from qtool.errors import DataError

RECORDINGS = Kind("wav", "recording", "a recording", (".wav", ".wave"))
UNKNOWN_SIZE = (0, 0xFFFFFFFF)
"""The sizes that programs write into a header when they write to a pipe."""


@dataclass(frozen=True, eq=False)
class WavSource:
    """Recordings that become one model input.

    Attributes:
        paths: the files.
        spec: the model's input.
        rate: samples a second that the model takes.
        samples: how many of them each recording has.
        options: those of the recipe.
        shape: of one row of the model's input.
        digests: by position, computed on first use.
    """

    paths: tuple[Path, ...]
    spec: InputSpec
    rate: int
    samples: int
    options: Wav
    shape: tuple[int, ...]
    digests: dict[int, str] = field(default_factory=dict)

    def stream(self, positions: Sequence[int], size: int) -> Iterator[Batch]:
        """Yield batches of at most ``size`` recordings, in order."""
        for start in range(0, len(positions), size):
            rows = [self._row(self.paths[k]) for k in positions[start : start + size]]
            yield {self.spec.name: cast(np.stack(rows), self.spec, self.options.path)}

    def digest(self, position: int) -> str:
        """Return the sha256 of the file's bytes."""
        if position not in self.digests:
            path = self.paths[position]
            try:
                self.digests[position] = file_digest(path)
            except OSError as error:
                raise _damaged(path, str(error)) from error
        return self.digests[position]

    def _row(self, path: Path) -> np.ndarray:
        signal, rate = read_wav(path)
        signal = fit(resample(signal, rate, self.rate), self.samples, self.options.align)
        mel = self.options.log_mel
        row = signal if mel is None else log_mel(signal, self.rate, mel)
        return row.astype(np.float32).reshape(self.shape)


class WavReader(Reader):
    """Open a folder of recordings for a model with one input.

    Class folders give the labels as for images; ``labels`` overrides them. Recordings are
    resampled, and cut or padded to one length; the model gets samples or a log-mel spectrogram.
    """

    description = "A folder of .wav files, or of class folders; or a mapping with its path."
    options = Wav
    source = "path"
    short_form = True
    paths = ("path",)
    uses = ("labels", "classes")
    instead: ClassVar[Mapping[str, str]] = {}

    def __call__(
        self, section: Section, inputs: Mapping[str, InputSpec], opening: Opening
    ) -> Dataset:
        """Open the folder; see :class:`qtool.data.reader.Reader`."""
        options = section.reader_options(Wav)
        root = Path(options.path)
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
            labels, classes, more = read_labels(label_file, names, section.class_order)
            notes += more
        elif classes is not None:
            classes = ordered_classes(classes, section.class_order, str(root))
            labels = folder_labels(names, classes)
        paths = tuple(root / name for name in names)
        rate, changes = _common_rate(paths, options)
        samples, shape = _sizes(options, spec)
        _check_band(options.log_mel, rate)
        source = WavSource(paths, spec, rate, samples, options, shape)
        length = f"recordings are cut or padded to {samples} samples, {samples / rate:.3g} s"
        return Dataset(
            names, source, tuple(range(len(names))), labels, classes, (*notes, *changes, length)
        )


def read_wav(path: Path) -> tuple[np.ndarray, int]:
    """Read one file: 8, 16, 24 and 32 bit integers, 32 and 64 bit floats; channels are averaged.

    Args:
        path: the file.

    Returns:
        Samples float64 [n], between -1 and 1 for integers, and how many there are a second.

    Raises:
        DataError: the file is damaged or of another kind.
    """
    stored, rate = _read(path)
    if stored.dtype == np.uint8:
        signal = (stored.astype(np.float64) - 128) / 128
    elif stored.dtype.kind == "i":  # scipy shifts 24 bits to the top of 32
        signal = stored.astype(np.float64) / -float(np.iinfo(stored.dtype).min)
    else:
        signal = stored.astype(np.float64)
    if not np.isfinite(signal).all():
        raise DataError(
            f"{path}: holds NaN or Inf; expected finite samples: repair or remove the file"
        )
    return signal.mean(axis=1) if signal.ndim == 2 else signal, rate


def _read(path: Path, only_header: bool = False) -> tuple[np.ndarray, int]:
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
        raise _damaged(path, "it needs more memory than there is") from error
    except Exception as error:  # scipy raises many kinds on damaged headers
        raise _damaged(path, str(error)) from error
    if stored.size == 0 or rate <= 0:
        raise _damaged(path, f"{stored.size} samples at {rate} Hz")
    return stored, int(rate)


def _check_whole(path: Path) -> None:
    """Refuse a file that is shorter than its header says; scipy would read the rest."""
    with path.open("rb") as file:
        head, size = file.read(12), path.stat().st_size
        if head[:4] not in (b"RIFF", b"RIFX", b"RF64") or head[8:] != b"WAVE":
            raise _damaged(path, "it does not begin as a RIFF WAVE file")
        order = ">I" if head[:4] == b"RIFX" else "<I"
        header, start = head[:8], 8
        while len(header) == 8:
            (length,) = struct.unpack(order, header[4:])
            if length not in UNKNOWN_SIZE and start + length > size + 1:
                raise _damaged(path, f"{size} bytes, its header says {start + length}")
            if header[:4] == b"data":
                return
            file.seek(12 if start == 8 else start + length + length % 2)
            header, start = file.read(8), file.tell()


def _damaged(path: Path, what: str) -> DataError:
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


def _common_rate(paths: Sequence[Path], options: Wav) -> tuple[int, tuple[str, ...]]:
    """Read the headers; return the rate, and notes about files that are changed."""
    rates: dict[int, Path] = {}
    wide = resampled = 0
    for path in paths:
        stored, rate = _read(path, only_header=True)
        rates.setdefault(rate, path)
        wide += stored.ndim == 2
        resampled += options.rate is not None and rate != options.rate
    if options.rate is None and len(rates) > 1:
        listed = ", ".join(f"{rate} Hz ({path.name})" for rate, path in rates.items())
        raise DataError(
            f"{options.path}: the recordings have the rates {listed}; expected one: set "
            f"`wav: {{rate: {min(rates)}}}` to resample"
        )
    count = len(paths)
    notes = [f"{wide} of {count} recordings have several channels; they are averaged"] * (wide > 0)
    if resampled:
        notes.append(f"{resampled} of {count} recordings are resampled to {options.rate} Hz")
    return options.rate or next(iter(rates)), tuple(notes)


def _sizes(options: Wav, spec: InputSpec) -> tuple[int, tuple[int, ...]]:
    """Return the samples of every recording, and the shape of one row of the model's input."""
    dims, mel = spec.shape[1:], options.log_mel
    axes = 1 if mel is None else 2
    wrong = f"{options.path}: the model's input is {spec.describe()}; "
    if len(dims) < axes or any(
        dim not in (1, None) and isinstance(dim, int) for dim in dims[:-axes]
    ):
        form = "[N, samples]" if mel is None else "[N, mels, frames]"
        remedy = "; set `wav: {log_mel: {..}}`" if mel is None else ""
        raise DataError(f"{wrong}expected {form}, with axes of 1 between{remedy}")
    time = dims[-1] if mel is None or mel.layout == "mel_time" else dims[-2]
    samples = options.samples
    if samples is None and isinstance(time, int):
        samples = time if mel is None else samples_of(time, mel)
    if samples is None:
        raise DataError(
            f"{wrong}the length of a sample is open, and recordings differ in it: set "
            "`wav: {samples: 16000}`"
        )
    if mel is None:
        own: tuple[int, ...] = (samples,)
    elif samples < shortest(mel):
        raise DataError(
            f"{options.path}: {samples} samples are fewer than one frame of n_fft {mel.n_fft}; "
            f"expected at least {shortest(mel)}: set `wav: {{samples: ..}}`"
        )
    else:
        own = (mel.mels, frame_count(samples, mel))
        own = own if mel.layout == "mel_time" else own[::-1]
    shape = (1,) * (len(dims) - axes) + own
    if not spec.fits(shape):
        raise DataError(
            f"{wrong}a recording of {samples} samples becomes {show_shape(shape)}: expected it to "
            "fit: "
            + ("set `wav: {samples: ..}`" if mel is None else "correct `wav: {log_mel: ..}`")
        )
    return samples, shape


def _check_band(mel: LogMel | None, rate: int) -> None:
    """Refuse a band that is empty at this rate."""
    if mel is None:
        return
    top = rate / 2 if mel.fmax is None else mel.fmax
    if top > rate / 2 or mel.fmin >= top:
        raise DataError(
            f"wav.log_mel: the band {mel.fmin:g}..{top:g} Hz does not fit a rate of {rate} Hz; "
            f"expected fmin below fmax, and fmax up to {rate / 2:g}: correct it"
        )
