"""Any quantized ONNX file, also another tool's, judged against its float model."""

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qtool import files
from qtool.errors import UnsupportedError
from qtool.loading import read_graph
from qtool.metrics.registry import METRICS, score_outputs
from qtool.pipeline.evaluate import (
    agreement,
    chance_notes,
    data_keys,
    evaluations,
    metric_of,
    save_feeds,
    told,
)
from qtool.pipeline.prepare import Prepared, prepare
from qtool.progress import Progress, silent
from qtool.quant.quantized_io import read_quantized_io
from qtool.recipe.model import Recipe
from qtool.report.render import write_run_files
from qtool.report.report import Accuracy, Data, DataPart, Latency, OutputPart, Report, Size, judge
from qtool.steps.stage_cache import Stages
from qtool.verification.environment import environment, instruction_sets
from qtool.verification.kernels import file_kernels
from qtool.verification.layer_table import model_part
from qtool.verification.ort_worker import run_tasks
from qtool.version import __version__
from qtool.weights.int16_saturation import adds_pairs


def verify_file(
    file: Path,
    recipe: Recipe,
    *,
    seed: int = 0,
    threads: int | None = None,
    out: Path | None = None,
    trust_code: bool = False,
    progress: Progress = silent,
) -> Report:
    """Measure accuracy, size, speed and kernels of a file, as ``ptq`` does of its own.

    What needs the plan of a run (simulation, parity, layers) is absent from the report.

    Args:
        file: the quantized ONNX file; it is only read.
        recipe: its model is the float one; data, metric and gates are used.
        seed: for the samples that are held out where the recipe has no ``evaluate``.
        threads, trust_code, progress: as for ``run_ptq``.
        out: where to write the report's files; None writes nothing.

    Raises:
        QtoolError: anything that is the user's to fix; then nothing was written.
    """
    with tempfile.TemporaryDirectory(prefix="qtool-") as folder:
        scratch = Path(folder)
        stages = Stages(scratch / "stages", True, ())
        quantized, parts = read_graph(file)
        prepared = prepare(recipe, stages, seed, progress, trust_code)
        _check_quantized_io(file, quantized, prepared)
        dynamic = any(n.op_type.startswith("DynamicQuantize") for n in quantized.graph.all_nodes())
        latency = _measure(file, prepared, stages, scratch, threads, dynamic, progress)
        accuracy = _accuracy(recipe, prepared, stages, scratch)
        optimized = ir.load(scratch / "optimized.onnx")
        kernels = file_kernels(optimized, adds_pairs(instruction_sets()))
    loaded, judged = prepared.loaded, prepared.judged
    size = _size(loaded.size, sum(part.stat().st_size for part in parts))
    gates = judge(recipe.gates.model_dump(), accuracy, size, latency)
    opset = quantized.opset_imports.get("", 1)
    report = Report(
        qtool=__version__,
        command="verify",
        seed=seed,
        passed=all(gate.passed for gate in gates),
        model=model_part(loaded.shown, loaded.sha256, loaded.model),
        output=OutputPart(path=str(file), sha256=files.digest_of(parts), opset=opset),
        data=Data(evaluation=DataPart(count=judged.count, sha256=judged.digest)),
        accuracy=accuracy,
        size=size,
        latency=latency,
        kernels=kernels,
        stages=stages.done,
        gates=gates,
        environment=environment(),
    )
    if out is not None:
        write_run_files(report, out)
    return report


def _size(before: int, after: int) -> Size:
    return Size(float_bytes=before, quantized_bytes=after, compression=round(before / after, 4))


def _check_quantized_io(file: Path, quantized: ir.Model, prepared: Prepared) -> None:
    """Refuse a file that cannot be fed with the same data.

    Raises:
        UnsupportedError: an input has another name or type than in the float model.
    """
    graph = prepared.loaded.model.graph
    ends = read_quantized_io(quantized.metadata_props)  # quantized on the way in, dequantized out
    for value in quantized.graph.inputs:
        if value.name in quantized.graph.initializers:
            continue
        spec = prepared.inputs.get(value.name or "")
        wants = "" if value.dtype is None else str(value.dtype.numpy())
        if spec is None or (spec.dtype != wants and value.name not in ends.inputs):
            found = f'"{value.name}" of {wants or "an unknown type"}'
            listed = ", ".join(s.describe() for s in prepared.inputs.values())
            raise UnsupportedError(
                f"{file}: found the input {found}, expected those of {prepared.loaded.shown}: "
                f"{listed}; give the float model the file was made from, or a file with float "
                "inputs"
            )
    outputs = (graph.outputs[0], quantized.graph.outputs[0])
    if outputs[0].dtype != outputs[1].dtype and outputs[1].name not in ends.outputs:
        raise UnsupportedError(
            f'{file}: its first output "{outputs[1].name}" holds {outputs[1].dtype}, expected '
            f"{outputs[0].dtype} as in {prepared.loaded.shown}; give a file with float outputs"
        )


def _measure(
    file: Path,
    prepared: Prepared,
    stages: Stages,
    scratch: Path,
    threads: int | None,
    dynamic: bool,
    progress: Progress,
) -> Latency:
    """Run both files in the child process; outputs and the executed graph stay in ``scratch``."""
    both = {"float": str(prepared.loaded.path), "quantized": str(file)}
    big = prepared.loaded.big
    with stages.stage("verify") as record:
        save_feeds(prepared, scratch / "feeds.npz")
        optimize = {"model": str(file), "optimized": str(scratch / "optimized.onnx")}
        timing = {"feeds": str(scratch / "feeds.npz"), "threads": threads or 1}
        tasks = [
            {"kind": "optimize", "threads": 1, "big": big, **optimize},
            *evaluations(both, prepared, scratch, data_keys(prepared, threads), dynamic),
            {"kind": "latency", "big": big, **timing, **both},
        ]
        results = run_tasks(tasks, scratch, progress)
        record.child_mb = max(r.pop("peak_rss_mb") for r in results)
        record.notes.append(f"the file loads in {results[0]['load_seconds'] * 1e3:.0f} ms")
    return Latency(**results[-1])


def _accuracy(recipe: Recipe, prepared: Prepared, stages: Stages, scratch: Path) -> Accuracy:
    """Accuracy of both files, and how often they agree (in %)."""
    judged = prepared.judged
    outputs = {k: np.load(scratch / f"{k}.npy", mmap_mode="r") for k in ("float", "quantized")}
    if outputs["float"].shape != outputs["quantized"].shape:
        found, wanted = (list(outputs[k].shape) for k in ("quantized", "float"))
        raise UnsupportedError(
            f"the quantized file's first output has shape {found} on all samples, expected "
            f"{wanted} as that of the float model; give the float model the file was made from"
        )
    metric = metric_of(recipe, prepared)
    classes = metric is None or metric[1].classes
    pair = agreement(outputs["float"], outputs["quantized"]) if classes else None
    if metric is None and pair is None:  # no classes: what differs from float says more
        metric = ("sqnr", METRICS["sqnr"])
    if metric is None:
        return Accuracy(samples=judged.count, agreement=pair)
    with stages.stage("judge") as record:
        found_all = score_outputs(metric[1], outputs, judged.labels)
        record.notes += chance_notes(metric[0], found_all, judged.labels)
    return told(metric, found_all, judged.count, pair)
