"""Saved arrays as the samples of one model input: along an axis, stacked, or one for all."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from qtool.data.inputs import InputSpec, cast, fits, show_shape
from qtool.data.readers.npz import Column
from qtool.errors import DataError


@dataclass(frozen=True)
class Rows:
    """An array of a file as samples of one input.

    Attributes:
        column: the array.
        count: samples; None where one sample is that of all calls of the file.
        axis: of the array that counts the samples; None where none does.
        single: an axis of size 1 that is no part of a sample; None where there is none.
    """

    column: Column
    count: int | None
    axis: int | None
    single: int | None = None

    @property
    def sample(self) -> tuple[int, ...]:
        """The shape of one sample."""
        drop = (self.axis, self.single)
        return tuple(size for axis, size in enumerate(self.column.shape) if axis not in drop)

    def values(self) -> np.ndarray:
        """Read the samples: [count, *sample], or one sample where count is None."""
        values = self.column.values()
        if self.axis is not None:
            values = np.moveaxis(values, self.axis, 0)
        return values if self.single is None else np.squeeze(values, self.single)


def rows_of(column: Column, spec: InputSpec) -> Rows:
    """Return an array as samples of a model input, by its shape.

    The array has the input's axes, of which the batch axis counts the samples, or one axis more in
    front, which counts whole inputs. An input without batch axis takes one array for all samples.

    Raises:
        DataError: the array fits in no way.
    """
    shape, axis = column.shape, spec.batch_axis
    cast(np.empty(0, column.dtype), spec, column.name)
    if len(shape) == len(spec.shape):
        if axis is None and fits(spec.shape, shape):
            return Rows(column, None, None)
        if axis is not None and spec.fits((*shape[:axis], *shape[axis + 1 :])):
            return Rows(column, shape[axis], axis)
    if len(shape) == len(spec.shape) + 1:
        if axis is None and fits(spec.shape, shape[1:]):
            return Rows(column, shape[0], 0)
        if axis is not None and shape[axis + 1] == 1 and fits(spec.shape, shape[1:]):
            return Rows(column, shape[0], 0, axis + 1)
    if not shape:
        raise DataError(f"{column.name}: is a single number; expected a leading sample axis")
    expected = "the sample axis first" if not axis else f"the samples along axis {axis}"
    raise DataError(
        f"{column.name}: has shape {show_shape(shape)}; expected that of the model's input "
        f"{spec.describe()}, {expected}"
    )


def shared_rows(rows: Mapping[str, Rows], specs: Mapping[str, InputSpec]) -> dict[str, Rows]:
    """Let a single array of an input serve all samples of the file, where others have more.

    Only where the model computes single samples in a call: an array [1, T, T] is then the mask of
    any sample.
    """
    if max((each.count or 1 for each in rows.values()), default=1) == 1:
        return dict(rows)
    return {
        name: replace(each, count=None, axis=None, single=each.axis)
        if each.count == 1 and each.single is None and specs[name].batch == 1
        else each
        for name, each in rows.items()
    }
