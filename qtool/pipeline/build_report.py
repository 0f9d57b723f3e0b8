"""Build the report of a run from its parts."""

from qtool.files import digest_of
from qtool.pipeline.checks.diagnosis import diagnosis_of
from qtool.pipeline.checks.preprocessing import expectation_gates
from qtool.pipeline.context import Prepared
from qtool.pipeline.evaluate import Evaluation
from qtool.pipeline.provenance import read_provenance
from qtool.pipeline.pruning.channels import removed_channels
from qtool.pipeline.stages import Emitted
from qtool.pruning.sparsity import sparsity_part
from qtool.report.gates import Measured, check_gates
from qtool.report.layer_schema import Layer
from qtool.report.report import Report
from qtool.report.schema import Data, DataPart, Kernels, ModelPart, OutputPart, Size
from qtool.report.sparsity_schema import SparsityPart
from qtool.report.verdict import with_verdict
from qtool.steps.guard import AppliedSteps
from qtool.verification.environment import environment
from qtool.verification.file_size import file_bytes, file_parts, size_part, written_files
from qtool.verification.kernels import kernels_part
from qtool.verification.layers.histograms import with_measures
from qtool.verification.layers.table import layers_part
from qtool.version import __version__


def build_report(
    prepared: Prepared,
    float_model: ModelPart,
    steps: AppliedSteps,
    emitted: Emitted,
    evaluation: Evaluation,
) -> Report:
    """Return the report of ``qtool ptq`` or ``qat``.

    Args:
        prepared: recipe, model and data.
        float_model: counted before rewrites change the form of convolutions.
        steps: outcome of the post-training steps and of training.
        emitted: the file.
        evaluation: what was measured on it.
    """
    recipe, context = prepared.recipe, prepared.context
    size, layers = _sizes(prepared, emitted, evaluation)
    measured = _measured(prepared, evaluation, size, layers)
    gates = check_gates(recipe.gates.model_dump(), measured)
    gates += expectation_gates(prepared, evaluation.accuracy)
    kernels = _kernels(prepared, emitted, evaluation)
    diagnosis = diagnosis_of(prepared, steps, emitted, evaluation, kernels, size, gates)
    report = Report(
        qtool=__version__,
        command="ptq" if steps.training is None else "qat",
        seed=context.seed,
        passed=evaluation.parity_passed and all(gate.passed for gate in gates),
        model=float_model,
        output=output_part(prepared, emitted),
        data=Data(
            calibration=_calibration_part(prepared),
            training=steps.training,
            evaluation=evaluation_part(prepared) if recipe.evaluate else None,
            doubts=diagnosis.doubts or None,
        ),
        accuracy=evaluation.accuracy,
        size=size,
        sparsity=_sparsity(prepared, emitted),
        latency=evaluation.latency,
        parity=evaluation.parity,
        kernels=kernels,
        layers=layers,
        outputs=None if evaluation.accuracy is None else evaluation.outputs or None,
        ptq=list(steps.rows) or None,
        stages=context.cache.done,
        diagnosis=diagnosis.findings or None,
        gates=gates,
        environment=environment(),
    )
    return with_verdict(report)


def _calibration_part(prepared: Prepared) -> DataPart | None:
    """Return count and digest of the calibration samples; None where nothing was calibrated."""
    dataset, options = prepared.context.calibration, prepared.recipe.calibrate.synthetic
    ranges = None if options is None else options.ranges
    if ranges == "none":
        return None
    return DataPart(count=dataset.count, sha256=dataset.digest, synthetic=ranges)


def output_part(prepared: Prepared, emitted: Emitted) -> OutputPart:
    """Return what the report says of the file that was written."""
    return OutputPart(
        path=emitted.path.name,
        sha256=digest_of(written_files(emitted.path)),
        opset=prepared.loaded.model.opset_imports[""],
        format=prepared.recipe.output.format,
        **emitted.io.described(),
        provenance=read_provenance(emitted.model.metadata_props),
    )


def evaluation_part(prepared: Prepared) -> DataPart:
    """Return count and digest of the evaluation samples."""
    dataset = prepared.evaluation.dataset
    return DataPart(count=dataset.count, sha256=dataset.digest)


def _measured(
    prepared: Prepared, evaluation: Evaluation, size: Size, layers: list[Layer]
) -> Measured:
    return Measured(
        accuracy=evaluation.accuracy,
        size=size,
        latency=evaluation.latency,
        layers=tuple(layers),
        evaluation=prepared.evaluation.dataset.digest if prepared.recipe.evaluate else None,
        baseline=prepared.options.baseline,
    )


def _sizes(
    prepared: Prepared, emitted: Emitted, evaluation: Evaluation
) -> tuple[Size, list[Layer]]:
    loaded = prepared.loaded
    whole, layers = file_parts(emitted.model)
    before = loaded.size or file_bytes(loaded.path)
    size = size_part(before, emitted.path, loaded.model, emitted.plan, whole)
    noise = {name: measure.alone.db for name, measure in evaluation.layers.items()}
    rows = layers_part(loaded.model, emitted.plan, noise, layers)
    return size, with_measures(rows, loaded.model, emitted.plan, evaluation.layers)


def _sparsity(prepared: Prepared, emitted: Emitted) -> SparsityPart | None:
    """Return the zeros of the file; None where the recipe prunes nothing."""
    if prepared.recipe.pruning is None:
        return None
    loaded = prepared.loaded
    files, float_files = written_files(emitted.path), written_files(loaded.path)
    removed = removed_channels(loaded.model)
    return sparsity_part(loaded.model, emitted.plan, files, float_files, removed)


def _kernels(prepared: Prepared, emitted: Emitted, evaluation: Evaluation) -> Kernels:
    kernels = kernels_part(evaluation.optimized, emitted.plan, evaluation.saturating)
    if prepared.context.target.runtime != "onnxruntime":
        # Pairs of Q and DQ that ONNX Runtime leaves say nothing about another runtime.
        return kernels.model_copy(update={"stray_quantize": []})
    return kernels
