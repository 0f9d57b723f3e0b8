"""``qtool inspect``: describe a float model, or the file of a run."""

import json as json_format
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qtool.cli.console import options
from qtool.cli.console.exits import exit_codes, print_result, printable
from qtool.cli.console.progress import show_progress
from qtool.errors import RecipeError

if TYPE_CHECKING:
    from qtool.pipeline.inspection import ModelInfo, RunInfo

SLOWEST = 12
DEFAULT_TARGET = "onnxruntime-cpu"


def inspect(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL|RUN", help="A model or a run folder."),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="T",
            help="The target whose patterns are looked for. [default: onnxruntime-cpu]",
        ),
    ] = None,
    threads: options.Threads = None,
    trust_code: options.TrustCode = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Print layers, shapes, parameters, MACs and weight ranges; of a run also kernels and times."""
    with exit_codes(json):
        if model.is_dir() and target is not None:
            raise RecipeError("--target: a run has the target of its recipe; remove the option")
        if not model.is_dir() and threads is not None:
            raise RecipeError("--threads: nothing of a model is timed, only of a run; remove it")
        from qtool.pipeline.context import RunOptions
        from qtool.pipeline.inspection import inspect_model, inspect_run

        with show_progress(quiet) as progress:
            run_options = RunOptions(threads=threads, trust_code=trust_code, progress=progress)
            if model.is_dir():
                run = inspect_run(model, run_options)
                text = _run_json(run) if json else printable(_run_text(run))
            else:
                info = inspect_model(model, target or DEFAULT_TARGET, run_options)
                text = _model_json(info) if json else printable(_model_text(info))
        print_result(text)


def _model_text(info: "ModelInfo") -> str:
    """Return the description of a model as aligned columns."""
    from qtool.report.render.formatting import origin

    total = sum(layer.macs for layer in info.layers)
    rows = [("LAYER", "OP", "OUTPUT", "PARAMETERS", "MACS", "WEIGHTS")]
    for layer in info.layers:
        shape = "x".join("?" if d is None else str(d) for d in layer.shape or ()) or "?"
        limits = layer.weight_range
        weights = f"{limits[0]:.3g} .. {limits[1]:.3g}" if limits else ""
        count, macs = f"{layer.parameters:,}", f"{layer.macs:,}" if layer.macs else ""
        rows.append((layer.name, layer.op, shape, count, macs, weights))
    head = [f"{info.path}: opset {info.opset}, {info.parameters:,} parameters, {total:,} MACs"]
    head += [f"input   {text}" for text in info.inputs.values()]
    head += [f"output  `{name}` {text}" for name, text in info.outputs.items()]
    tail = ["", f"Operators: {_counts(info.operators)}"]
    if info.patterns:
        tail += [f"Patterns:  {_counts(info.patterns)}"]
    if info.quantized:
        tail += [f"Quantized: {_counts(info.quantized)}; the layers are the floats they stand for"]
    if info.provenance is not None:
        tail += [f"Made by:   {origin(info.provenance)}"]
    return "\n".join([*head, "", *columns(rows, right=(3, 4)), *tail])


def _run_text(run: "RunInfo") -> str:
    """Return layers, float nodes with reasons, and the slowest kernels as aligned columns."""
    from qtool.report.render.formatting import origin

    rows = [("LAYER", "OP", "BITS", "SQNR", "BYTES")]
    for layer in run.report.layers:
        bits = f"W{layer.weight_bits}A{layer.activation_bits}"
        db = "" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f} dB"
        rows.append((layer.name, layer.op, bits, db, f"{layer.bytes or 0:,}"))
    parts = columns(rows, right=(3, 4))
    if run.float_nodes:
        parts += ["", f"{len(run.float_nodes)} nodes compute in floats:"]
        parts += columns([("NODE", "OP", "WHY"), *run.float_nodes])
    own = run.report.output.provenance
    made = [] if own is None else ["", f"{run.report.output.path} was made by {origin(own)}"]
    return "\n".join([*parts, "", *_times(run), *made])


def _times(run: "RunInfo") -> list[str]:
    """Return the time by kernel, and the slowest nodes."""
    if not run.times:
        return [f"No time by kernel: {run.times_missing}"]
    from qtool.verification.kernel_times import kernel_times

    total = sum(time.ms for time in run.times)
    rows = [("KERNEL", "MS", "SHARE", "NODES")]
    for kernel in kernel_times(run.times):
        share = f"{100 * kernel.ms / total:.1f} %"
        rows.append((kernel.op, f"{kernel.ms:.3f}", share, str(kernel.nodes)))
    slowest = [("SLOWEST NODES", "KERNEL", "MS")]
    slowest += [(t.name, t.op, f"{t.ms:.3f}") for t in run.times[:SLOWEST]]
    return [*columns(rows, right=(1, 2, 3)), "", *columns(slowest, right=(2,))]


def _model_json(info: "ModelInfo") -> str:
    parts = asdict(replace(info, provenance=None))
    del parts["provenance"]
    if info.provenance is not None:
        parts["provenance"] = info.provenance.model_dump(exclude_none=True)
    return json_format.dumps(parts)


def _run_json(run: "RunInfo") -> str:
    parts = asdict(run)
    parts["times"] = [time.model_dump() for time in run.times]
    parts["report"] = json_format.loads(run.report.to_json())
    return json_format.dumps(parts)


def columns(rows: Sequence[tuple[str, ...]], right: tuple[int, ...] = ()) -> list[str]:
    """Align the cells of a table with a header; the columns ``right`` are flushed right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if k in right else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} x{count}" for name, count in counts.items())
