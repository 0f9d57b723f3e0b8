"""The wav reader: a folder of recordings, or of class folders; raw samples or log-mel."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import ClassVar

import numpy as np

from qtool.data.class_names import ordered_classes
from qtool.data.dataset import Dataset
from qtool.data.inputs import InputSpec, cast, show_shape, unfed_hint
from qtool.data.labels import read_labels
from qtool.data.reader import Reader, Section
from qtool.data.reader_options import LogMel, Wav
from qtool.data.readers.folders import Kind, file_digest, folder_labels, list_samples
from qtool.data.readers.mel import frame_count, log_mel, samples_of, shortest
from qtool.data.readers.wav_file import (
    check_finite,
    damaged,
    fit,
    read_stored,
    read_wav,
    resample,
)
from qtool.data.source import Batch, Opening
from qtool.errors import DataError

RECORDINGS = Kind("wav", "recording", "a recording", (".wav", ".wave"))


@dataclass(frozen=True, eq=False)
class WavSource:
    """Recordings, or chunks of them, that become one model input.

    Attributes:
        root: the folder.
        files: names of the files, relative to root.
        spec: the model's input.
        rate: samples a second that the model takes.
        samples: how many of them each recording has.
        options: those of the recipe.
        shape: of one row of the model's input.
        starts: the position of each file's first chunk.
        digests: of the files, computed on first use.
        opened: the signal of the file read last, by file number.
    """

    root: Path
    files: tuple[str, ...]
    spec: InputSpec
    rate: int
    samples: int
    options: Wav
    shape: tuple[int, ...]
    starts: tuple[int, ...]
    digests: dict[int, str] = field(default_factory=dict)
    opened: dict[int, np.ndarray] = field(default_factory=dict)

    def stream(self, positions: Sequence[int], size: int) -> Iterator[Batch]:
        """Yield batches of at most ``size`` recordings or chunks, in order."""
        for start in range(0, len(positions), size):
            rows = [self._row(k) for k in positions[start : start + size]]
            yield {self.spec.name: cast(np.stack(rows), self.spec, self.options.path)}

    def digest(self, position: int) -> str:
        """Return the sha256 of the file's bytes, and of a chunk's number; refuse NaN and Inf."""
        number, chunk = self.place(position)
        if number not in self.digests:
            path = self.root / self.files[number]
            check_finite(path)
            try:
                self.digests[number] = file_digest(path)
            except OSError as error:
                raise damaged(path, str(error)) from error
        if self.options.hop is None:
            return self.digests[number]
        return hashlib.sha256(f"{self.digests[number]} {chunk}".encode()).hexdigest()

    def place(self, position: int) -> tuple[int, int]:
        """Return the number of the file, and that of the chunk in it."""
        number = bisect_right(self.starts, position) - 1
        return number, position - self.starts[number]

    def name(self, position: int) -> str:
        """Return a sample's name: the file, and the number of the chunk in it."""
        number, chunk = self.place(position)
        return self.files[number] + ("" if self.options.hop is None else f"[{chunk}]")

    def _row(self, position: int) -> np.ndarray:
        number, chunk = self.place(position)
        signal, hop, mel = self._signal(number), self.options.hop, self.options.log_mel
        if hop is None:
            signal = fit(signal, self.samples, self.options.align)
        else:
            start = (chunk + 1) * hop - self.samples
            part = signal[max(start, 0) : start + self.samples]
            signal = fit(np.pad(part, (max(-start, 0), 0)), self.samples, "start")
        row = signal if mel is None else log_mel(signal, self.rate, mel)
        return row.astype(np.float32).reshape(self.shape)

    def _signal(self, number: int) -> np.ndarray:
        """Read a file at the model's rate; only the last one's signal stays in memory."""
        if number not in self.opened:
            signal, rate = read_wav(self.root / self.files[number])
            self.opened.clear()
            self.opened[number] = resample(signal, rate, self.rate)
        return self.opened[number]


class WavReader(Reader):
    """Open a folder of recordings for a model with one input.

    Class folders give the labels as for images; ``labels`` overrides them. Recordings are
    resampled, and cut or padded to one length, or cut into chunks (``hop``), which are the calls
    of a stream; the model gets samples or a log-mel spectrogram.
    """

    description = "A folder of .wav files, or of class folders; or a mapping with its path."
    options = Wav
    source = "path"
    short_form = True
    paths = ("path",)
    uses = ("labels", "classes", "loop")
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
                f"{unfed_hint(inputs.values())}"
            )
        (spec,) = inputs.values()
        label_file = Path(section.labels) if section.labels is not None else None
        listing = list_samples(root, RECORDINGS, label_file)
        classes = listing.classes
        source, positions, notes = _source(section, spec, listing.names)
        notes = (*listing.notes, *notes)
        files = [source.files[source.place(position)[0]] for position in positions]
        labels: np.ndarray | None = None
        if label_file is not None:
            labels, classes, more = read_labels(label_file, files, section.class_order)
            notes += more
        elif classes is not None:
            classes = ordered_classes(classes, section.class_order, str(root))
            labels = folder_labels(files, classes)
        names = tuple(source.name(position) for position in positions)
        starts = () if options.hop is None else source.starts
        return Dataset(names, source, positions, labels, classes, notes, starts=starts)


def _source(
    section: Section, spec: InputSpec, listed: Sequence[str]
) -> tuple[WavSource, tuple[int, ...], tuple[str, ...]]:
    """Return the recordings or their chunks, the positions that are chosen, and notes."""
    options = section.reader_options(Wav)
    root, files = Path(options.path), tuple(listed)
    samples, shape = _sizes(options, spec)
    if options.hop is None:  # headers of the chosen files alone are read
        chosen, notes = section.choose(len(files))
        files = tuple(files[k] for k in chosen)
        rate, changes = _common_rate([root / name for name in files], options)
        counts, positions = [1] * len(files), tuple(range(len(files)))
        note = f"recordings are cut or padded to {samples} samples, {samples / rate:.3g} s"
    elif options.hop > samples:
        raise DataError(
            f"{root}: `wav: {{hop: {options.hop}}}` is more than the {samples} samples of a call, "
            "so some would be left out; expected at most as many"
        )
    else:
        paths = [root / name for name in files]
        rate, changes = _common_rate(paths, options)
        counts = [_chunk_count(path, rate, options.hop) for path in paths]
        chosen, notes = section.choose(sum(counts))
        positions = tuple(chosen)
        note = f"recordings are cut into calls of {samples} samples, {options.hop} of them new"
    _check_band(options.log_mel, rate)
    starts = (0, *accumulate(counts[:-1]))
    source = WavSource(root, files, spec, rate, samples, options, shape, starts)
    return source, positions, (*notes, *changes, note)


def _chunk_count(path: Path, rate: int, hop: int) -> int:
    """Return the number of calls that a recording is cut into."""
    stored, own = read_stored(path, only_header=True)
    return max(1, -(-len(stored) * rate // (own * hop)))


def _common_rate(paths: Sequence[Path], options: Wav) -> tuple[int, tuple[str, ...]]:
    """Read the headers; return the rate, and notes about files that are changed."""
    rates: dict[int, Path] = {}
    wide = resampled = 0
    for path in paths:
        stored, rate = read_stored(path, only_header=True)
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
    dims, mel = spec.sample, options.log_mel
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
