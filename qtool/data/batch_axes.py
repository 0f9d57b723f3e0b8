"""Choose the axis of every input that counts the samples, by the model's and the data's shapes."""

from collections.abc import Mapping
from dataclasses import replace

from qtool.data.inputs import InputSpec, fits, show_shape


def axes_of_model(
    specs: Mapping[str, InputSpec], declared: frozenset[str]
) -> tuple[dict[str, InputSpec], tuple[str, ...]]:
    """Choose the batch axes of inputs whose first axis does not count the samples.

    The first axis of the first input counts the samples, of those whose first axis is open if
    there are any. An input whose first axis has another size or name takes the axis of that name,
    or the only open axis; where all sizes are fixed, an axis of that size. Inputs that then fix
    several sizes have no batch axis.

    Args:
        specs: the model's inputs; all batch axes but the declared ones are the first.
        declared: inputs whose axis the recipe says.

    Returns:
        The inputs, and notes for the report.
    """
    sizes = [s.shape[s.batch_axis] for s in specs.values() if s.batch_axis is not None]
    if not sizes:
        return dict(specs), ()
    batch = next((size for size in sizes if _is_open(size)), sizes[0])
    is_open = _is_open(batch)
    result, notes = dict(specs), []
    for name, spec in specs.items():
        if name in declared or not spec.shape or spec.shape[0] == batch:
            continue
        axis = _open_axis(spec, batch) if is_open else _fixed_axis(spec, batch)
        if axis is not None:
            result[name] = replace(spec, batch_axis=axis)
            notes.append(f"the samples of the input {result[name].describe()} lie along that axis")
    fixed = {n: s for n, s in result.items() if s.batch is not None and n not in declared}
    if len({spec.batch for spec in fixed.values()}) > 1:
        listed = " and ".join(spec.describe() for spec in fixed.values())
        what = "are one array for all samples" if is_open else "make every sample a call"
        notes.append(f"the inputs {listed} share no axis that counts samples: they {what}")
        result |= {name: replace(spec, batch_axis=None) for name, spec in fixed.items()}
    return result, tuple(notes)


def _open_axis(spec: InputSpec, batch: int | str | None) -> int | None:
    """Return the axis named as the batch, or the only open one behind a fixed first axis."""
    named = [a for a, size in enumerate(spec.shape) if isinstance(batch, str) and size == batch]
    free = [axis for axis, size in enumerate(spec.shape) if _is_open(size)]
    if len(named) == 1:
        return named[0]
    first = spec.shape[0]
    return free[0] if len(free) == 1 and isinstance(first, int) and first > 1 else None


def _fixed_axis(spec: InputSpec, batch: int | str | None) -> int | None:
    """Return the only axis of the batch's size; of several axes of size 1 the first."""
    axes = [axis for axis, size in enumerate(spec.shape) if size == batch]
    return axes[0] if len(axes) == 1 or (axes and batch == 1) else None


def axes_of_data(
    shapes: Mapping[str, tuple[int, ...]], specs: Mapping[str, InputSpec]
) -> tuple[dict[str, InputSpec], tuple[str, ...]]:
    """Choose the batch axes by which the arrays of one file have the same number of samples.

    The axis of the first input with an open batch stands, else that of the first input. Another
    input whose array disagrees takes the only axis of that size which the model leaves open or
    fixes to the batch; for a single sample the only axis of size 1; for several samples no axis, if
    its array is as large as the input. Where nothing helps, no input has a batch axis, and a file
    is one call. Arrays with an axis more than the input hold whole inputs, each of which is a call.

    Args:
        shapes: input -> shape of its array in the first file.
        specs: the model's inputs, with the axes that the model and the recipe suggest.

    Returns:
        The inputs, and notes for the report.
    """
    if whole := _whole_inputs(shapes, specs):
        listed = ", ".join(f"`{name}` {show_shape(shapes[name])}" for name in whole)
        calls = {name: replace(specs[name], batch_axis=None) for name in whole}
        return {**specs, **calls}, (f"the arrays {listed} hold whole inputs: each is one call",)
    counts = {
        name: shape[spec.batch_axis]
        for name, shape in shapes.items()
        if (spec := specs[name]).batch_axis is not None and len(shape) == len(spec.shape)
    }
    if len(set(counts.values())) < 2:
        return dict(specs), ()
    count = next((counts[n] for n in counts if specs[n].batch is None), next(iter(counts.values())))
    result, notes = dict(specs), []
    for name, own in counts.items():
        if own == count:
            continue
        spec, shape = specs[name], shapes[name]
        axes = [
            axis
            for axis, size in enumerate(shape)
            if size == count and (_is_open(spec.shape[axis]) or spec.shape[axis] == spec.batch)
        ]
        if len(axes) != 1 and count == 1:
            axes = [a for a, size in enumerate(spec.shape) if size == 1]
        if len(axes) != 1 and count > 1 and spec.shape == shape:
            result[name] = replace(spec, batch_axis=None)
            notes.append(f"the input {result[name].describe()} is one array for all samples")
        elif len(axes) == 1:
            result[name] = replace(spec, batch_axis=axes[0])
            notes.append(f"the samples of the input {result[name].describe()} lie along that axis")
        elif own != 1 or spec.batch != 1:
            listed = ", ".join(f"`{n}` {show_shape(shapes[n])}" for n in counts)
            note = f"the arrays {listed} share no axis that counts samples: each file is one call"
            return {n: replace(s, batch_axis=None) for n, s in specs.items()}, (note,)
    return result, tuple(notes)


def _whole_inputs(
    shapes: Mapping[str, tuple[int, ...]], specs: Mapping[str, InputSpec]
) -> tuple[str, ...]:
    """Return the inputs whose arrays hold whole inputs of several samples, or of none.

    An array of single samples, [samples, 2, 1, 128] for [2, 1, 128], still counts them.
    """
    stacked = {
        name: shape
        for name, shape in shapes.items()
        if specs[name].batch_axis is not None and fits(specs[name].shape, shape[1:])
    }
    several = any(
        shape[1:][axis] != 1
        for name, shape in stacked.items()
        if (axis := specs[name].batch_axis) is not None
    )
    return tuple(stacked) if several else ()


def _is_open(size: int | str | None) -> bool:
    return not isinstance(size, int)
