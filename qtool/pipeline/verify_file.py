"""Evaluate any quantized ONNX file, also another tool's, against its float model."""

import tempfile
from pathlib import Path

import onnx_ir as ir

from qtool import files
from qtool.errors import UnsupportedError
from qtool.loading import read_graph
from qtool.pipeline.build_report import evaluation_part
from qtool.pipeline.checks.gate_needs import require_baseline
from qtool.pipeline.checks.preprocessing import expectation_gates
from qtool.pipeline.context import Prepared, RunOptions
from qtool.pipeline.evaluate import Evaluation, Evaluator
from qtool.pipeline.latency.measure import with_runtimes
from qtool.pipeline.latency.needs import require_runtimes
from qtool.pipeline.prepare import prepare
from qtool.pipeline.provenance import read_provenance
from qtool.quant.quantized_io import read_quantized_io
from qtool.recipe.model import Recipe
from qtool.report.gates import Measured, check_gates
from qtool.report.render import write_run_files
from qtool.report.report import Report
from qtool.report.schema import Data, OutputPart, Size
from qtool.report.verdict import with_verdict
from qtool.steps.stage_cache import StageCache
from qtool.verification.environment import environment, instruction_sets
from qtool.verification.kernels import file_kernels
from qtool.verification.layers.table import model_part
from qtool.version import __version__
from qtool.weights.int16_saturation import adds_pairs


def verify_file(
    file: Path, recipe: Recipe, options: RunOptions | None = None, out: Path | None = None
) -> Report:
    """Measure accuracy, size, speed and kernels of a file, as ``ptq`` does of its own.

    What needs the plan of a run (simulation, parity, layers) is absent from the report.

    Args:
        file: the quantized ONNX file; it is only read.
        recipe: its model is the float one; data, metric and gates are used.
        options: seed, threads, trust_code and progress are used; None: the defaults.
        out: where to write the report's files; None writes nothing.

    Raises:
        QtoolError: anything that is the user's to fix; then nothing was written.
    """
    options = options or RunOptions()
    require_baseline(recipe, options)
    require_runtimes(recipe)
    with tempfile.TemporaryDirectory(prefix="qtool-") as folder:
        scratch = Path(folder)
        cache = StageCache(scratch / "stages", fresh=True)
        quantized, parts = read_graph(file)
        prepared = prepare(recipe, cache, options)
        _check_quantized_io(file, quantized, prepared)
        dynamic = any(n.op_type.startswith("DynamicQuantize") for n in quantized.graph.all_nodes())
        evaluation = Evaluator(prepared, file, scratch, dynamic=dynamic).run()
        evaluation = with_runtimes(prepared, file, evaluation, scratch)
    report = _report(file, parts, quantized, prepared, evaluation)
    if out is not None:
        write_run_files(report, out)
    return report


def _report(
    file: Path, parts: list[Path], quantized: ir.Model, prepared: Prepared, evaluation: Evaluation
) -> Report:
    loaded = prepared.loaded
    size = _size(loaded.size, sum(part.stat().st_size for part in parts))
    limits = prepared.recipe.gates.model_dump()
    part = evaluation_part(prepared)
    measured = Measured(
        accuracy=evaluation.accuracy,
        size=size,
        latency=evaluation.latency,
        evaluation=part.sha256,
        baseline=prepared.options.baseline,
    )
    gates = check_gates(limits, measured)
    gates += expectation_gates(prepared, evaluation.accuracy)
    report = Report(
        qtool=__version__,
        command="verify",
        seed=prepared.options.seed,
        passed=all(gate.passed for gate in gates),
        model=model_part(loaded.shown, loaded.sha256, loaded.model),
        output=OutputPart(
            path=str(file),
            sha256=files.digest_of(parts),
            opset=quantized.opset_imports.get("", 1),
            provenance=read_provenance(quantized.metadata_props),
        ),
        data=Data(evaluation=part),
        accuracy=evaluation.accuracy,
        size=size,
        latency=evaluation.latency,
        outputs=evaluation.outputs or None,
        kernels=file_kernels(evaluation.optimized, adds_pairs(instruction_sets())),
        stages=prepared.context.cache.done,
        gates=gates,
        environment=environment(),
    )
    return with_verdict(report)


def _size(before: int, after: int) -> Size:
    return Size(float_bytes=before, quantized_bytes=after, compression=round(before / after, 4))


def _check_quantized_io(file: Path, quantized: ir.Model, prepared: Prepared) -> None:
    """Refuse a file that cannot be fed with the same data.

    Raises:
        UnsupportedError: an input has another name or type than in the float model.
    """
    graph, inputs = prepared.loaded.model.graph, prepared.context.inputs
    io = read_quantized_io(quantized.metadata_props)  # quantized on the way in, dequantized out
    for value in quantized.graph.inputs:
        if value.name in quantized.graph.initializers:
            continue
        spec = inputs.get(value.name or "")
        dtype = "" if value.dtype is None else str(value.dtype.numpy())
        if spec is None or (spec.dtype != dtype and value.name not in io.inputs):
            listed = ", ".join(s.describe() for s in inputs.values())
            raise UnsupportedError(
                f'{file}: found the input "{value.name}" of {dtype or "an unknown type"}, expected '
                f"those of {prepared.loaded.shown}: {listed}; give the float model the file was "
                "made from, or a file with float inputs"
            )
    expected, first = graph.outputs[0], quantized.graph.outputs[0]
    if expected.dtype != first.dtype and first.name not in io.outputs:
        raise UnsupportedError(
            f'{file}: its first output "{first.name}" holds {first.dtype}, expected '
            f"{expected.dtype} as in {prepared.loaded.shown}; give a file with float outputs"
        )
