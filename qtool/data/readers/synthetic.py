"""The synthetic reader: noise in the shapes of the model's inputs, where there is no data."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qtool.data.dataset import Dataset
from qtool.data.inputs import InputSpec
from qtool.data.reader import Reader, Section
from qtool.data.reader_options import Synthetic
from qtool.data.source import Batch, Opening, row_digest
from qtool.errors import DataError

COUNT = 64
"""Samples that there are; more do not move statistics that every batch is normalized to."""

# Share of an image's variance that its channels have in common, about that of photographs.
COMMON = 0.9
# Pixels of a limited range are within 3 deviations of their mean.
LIMIT = 3.0


@dataclass(frozen=True, eq=False)
class NoiseSource:
    """Noise by position; the same position always has the same sample.

    Attributes:
        specs: the model's inputs by name.
        options: mean and deviation of the inputs.
    """

    specs: Mapping[str, InputSpec]
    options: Synthetic

    def stream(self, positions: Sequence[int], size: int) -> Iterator[Batch]:
        """Yield the samples at the positions in order, ``size`` at a time."""
        for start in range(0, len(positions), size):
            rows = [self._row(position) for position in positions[start : start + size]]
            yield {name: np.stack([row[name] for row in rows]) for name in self.specs}

    def digest(self, position: int) -> str:
        """Return the sha256 over the row of every input."""
        return row_digest(self._row(position))

    def _row(self, position: int) -> Batch:
        rng = np.random.default_rng(position)
        return {name: self._values(spec, rng) for name, spec in self.specs.items()}

    def _values(self, spec: InputSpec, rng: np.random.Generator) -> np.ndarray:
        shape, dtype = tuple(int(str(dim)) for dim in spec.sample), np.dtype(spec.dtype)
        if dtype.kind != "f":
            return np.ones(shape, dtype)  # an index of every table, a mask that hides nothing
        noise = smooth_noise(shape, rng) if len(shape) > 2 else rng.normal(0, 1, shape)
        means = self.options.mean or (0.0,)
        mean = np.reshape(means, (-1, *[1] * (len(shape) - 1))) if len(means) > 1 else means[0]
        values = np.clip(noise, -LIMIT, LIMIT) * (self.options.std or 1.0) + mean
        return np.asarray(values.astype(dtype))


def smooth_noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return noise [C, ...] whose amplitude falls as 1 / frequency, mean 0, deviation about 1.

    The power of photographs falls so, whatever they show; channels have COMMON of their variance
    in common.

    Source: Field 1987, "Relations between the statistics of natural images and the response
        properties of cortical cells", J. Opt. Soc. Am. A 4(12).
    """
    space = shape[1:]
    grids = np.meshgrid(*(np.fft.fftfreq(n) * n for n in space), indexing="ij")
    radius = np.sqrt(sum(grid**2 for grid in grids))
    amplitude = 1 / np.maximum(radius, 1)
    axes = tuple(range(1, len(shape)))
    white = rng.normal(0, 1, (shape[0] + 1, *space))
    pink = np.fft.ifftn(np.fft.fftn(white, axes=axes) * amplitude, axes=axes).real
    pink /= np.sqrt(np.mean(amplitude**2))  # the deviation over many images
    return np.asarray(np.sqrt(COMMON) * pink[:1] + np.sqrt(1 - COMMON) * pink[1:])


class SyntheticReader(Reader):
    """Make samples up: 1/f noise for images, normal noise for other inputs, ones for integers.

    `ranges: batchnorm` calibrates by the statistics that BatchNorm nodes state; `ranges: none` is
    for runs that calibrate nothing. Labels there are none.
    """

    description = "batchnorm: no data, ranges from BatchNorm statistics; or a mapping with it."
    options = Synthetic
    source = "ranges"
    short_form = True
    paths = ()
    uses = ()
    instead: ClassVar[Mapping[str, str]] = {}
    synthetic = True

    def __call__(
        self, section: Section, inputs: Mapping[str, InputSpec], opening: Opening
    ) -> Dataset:
        """Open the noise; see :class:`qtool.data.reader.Reader`."""
        options = section.reader_options(Synthetic)
        for spec in inputs.values():
            if not all(isinstance(dim, int) for dim in spec.sample):
                raise DataError(
                    f"synthetic: the model's input {spec.describe()} leaves sizes open; write "
                    f"`model: {{onnx: .., input: {{{spec.name}: [N, ..]}}}}` with numbers"
                )
            means = options.mean or ()
            if len(means) > 1 and np.dtype(spec.dtype).kind == "f":
                _check_means(means, spec)
        chosen, notes = section.choose(COUNT)
        names = tuple(f"noise[{k}]" for k in chosen)
        source = NoiseSource(inputs, options)
        return Dataset(names, source, tuple(chosen), None, None, notes, synthetic=True)


def _check_means(means: Sequence[float], spec: InputSpec) -> None:
    """Refuse means that are not one for each channel of an input."""
    if not spec.sample or spec.sample[0] != len(means):
        raise DataError(
            f"synthetic: `mean` has {len(means)} numbers, but the model's input {spec.describe()} "
            "has another number of channels; expected one number, or one for each channel"
        )
