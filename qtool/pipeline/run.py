"""The order of the stages. A recipe chooses steps within a stage, never the order."""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qtool.calibration import CALIBRATORS
from qtool.calibration.collect import batch_size, observed_values
from qtool.emitters import emit_model, save_model
from qtool.errors import RecipeError
from qtool.files import atomic_path, digest_of, write_text_atomic
from qtool.graph.queries import release_weight_pages
from qtool.pipeline.evaluate import Judge, Judgement
from qtool.pipeline.prepare import Prepared, prepare
from qtool.pipeline.qat_checks import refuse_early
from qtool.pipeline.qat_stage import learn
from qtool.pipeline.qat_workers import help_learn
from qtool.pipeline.stages import constrain_weight_scales, make_grids, make_plan, rewrite
from qtool.progress import Progress, silent
from qtool.qat import distributed
from qtool.quant.freeze import freeze
from qtool.quant.plan import QuantPlan, same_shape
from qtool.quant.plan_io import read_plan, write_plan
from qtool.quant.quantized_io import QuantizedIO
from qtool.recipe.model import Recipe
from qtool.recipe.target_defaults import apply_target_defaults
from qtool.report.render import write_run_files
from qtool.report.report import Data, DataPart, ModelPart, OutputPart, Report, judge
from qtool.report.schema import TrainingPart
from qtool.runtime.ort_options import default_threads
from qtool.steps.stage_cache import Stages, first_missing, source_digest
from qtool.targets.loader import load_target
from qtool.verification.environment import environment, instruction_sets
from qtool.verification.file_size import file_bytes, file_parts, size_part, written_files
from qtool.verification.kernels import kernels_part
from qtool.verification.layer_table import layers_part, model_part, total_macs
from qtool.version import __version__
from qtool.weights import SCHEMES
from qtool.weights.grids import weight_grids


def run_ptq(
    recipe: Recipe,
    out: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    plan_file: Path | None = None,
    fresh: bool = False,
    trust_code: bool = False,
    requantize: bool = False,
    train: bool = False,
    epochs: int | None = None,
    progress: Progress = silent,
) -> Report:
    """Quantize a model, after training or while it is trained on, and write the run folder.

    Args:
        recipe: what to do, paths absolute.
        out: the run folder; made when missing.
        seed: for every random choice.
        device: where the simulation runs; statistics and verification are always on the CPU.
        threads: for ONNX Runtime; default the physical cores. Latency is timed on 1 unless given.
        plan_file: a ``plan.json`` whose grids are used instead of calibrating.
        fresh: ignore the results of earlier runs.
        trust_code: whether the recipe may run code of its own.
        requantize: whether a quantized ONNX file is turned back to floats first.
        train, epochs: see :func:`run_qat`.
        progress: told about every stage.

    Raises:
        QtoolError: anything that is the user's to fix; then nothing was written.
    """
    recipe = apply_target_defaults(recipe, load_target(recipe.target))
    if train:
        refuse_early(recipe, trust_code, device)
    made = first_missing(out)
    count = threads or default_threads()
    stages = _stages(out, fresh, count, device)
    scratch = out / ".stages" / "scratch"
    with stages.alone():
        try:
            prepared = prepare(recipe, stages, seed, progress, trust_code, requantize)
            part = rewritten(recipe, prepared, stages)
            plan = make_annotated(prepared, stages)
            plan = _calibrate(recipe, prepared, plan, stages, count, plan_file, progress)
            lessons = None
            if train:
                more = (stages, epochs, seed, device, progress)
                plan, lessons = learn(recipe, prepared, plan, *more)
            judged = (threads, device, progress)
            report = _finish(recipe, prepared, plan, stages, out, seed, part, lessons, *judged)
        except Exception:
            # What was finished is kept after an interruption only; else nothing is left behind.
            if made is not None:
                shutil.rmtree(made, ignore_errors=True)
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return report


def _stages(out: Path, fresh: bool, threads: int, device: str) -> Stages:
    base = (source_digest(), str(environment()), str(threads), device)
    return Stages(out / ".stages", fresh, base)


def _finish(
    recipe: Recipe,
    prepared: Prepared,
    plan: QuantPlan,
    stages: Stages,
    out: Path,
    seed: int,
    part: ModelPart,
    lessons: TrainingPart | None,
    threads: int | None,
    device: str,
    progress: Progress,
) -> Report:
    """From the final plan to the files in the run folder."""
    scratch = stages.folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    plan, emitted, ends = _freeze_and_emit(recipe, prepared, plan, stages, scratch)
    judging = Judge(recipe, prepared, plan, stages, scratch, threads, device, progress)
    found = judging.run(emitted)
    report = _report(recipe, prepared, plan, emitted, stages, seed, part, found, ends, lessons)
    _write(recipe, plan, report, out, scratch)
    return report


def run_qat(
    recipe: Recipe, out: Path, *, epochs: int | None = None, device: str = "cpu", **options: Any
) -> Report | None:
    """As :func:`run_ptq`, and the calibrated plan learns before it is rounded.

    Of several processes that torchrun started, the first does this; the others help it to train,
    and return None.

    Args:
        recipe: what to do; its ``qat`` section says how to train.
        out: the run folder.
        epochs: instead of the recipe's.
        device, options: as for :func:`run_ptq`.
    """
    with distributed.joined(device):
        if distributed.rank() == 0:
            return run_ptq(recipe, out, train=True, epochs=epochs, device=device, **options)
        _help(recipe, out, device, options)
        return None


def _help(recipe: Recipe, out: Path, device: str, options: Mapping[str, Any]) -> None:
    """Train with the first process."""
    recipe, seed = apply_target_defaults(recipe, load_target(recipe.target)), options.get("seed", 0)
    threads = options.get("threads") or default_threads()
    stages = _stages(out, False, threads, device)  # it holds models that the first one exported
    allowed = [options.get(key, False) for key in ("trust_code", "requantize")]

    def make() -> Prepared:
        prepared = prepare(recipe, stages, seed, silent, *allowed)
        rewritten(recipe, prepared, stages)
        return prepared

    # Where the first process ended early, it says why.
    with suppress(distributed.Lost):
        help_learn(recipe, make, seed, device)


def rewritten(recipe: Recipe, prepared: Prepared, stages: Stages) -> ModelPart:
    """Rewrite the graph in place; returns what it counted before convolutions change their form."""
    loaded = prepared.loaded
    part = model_part(loaded.shown, loaded.sha256, loaded.model)
    with stages.stage("rewrite") as record:
        names = prepared.target.rewrites if recipe.rewrite is None else recipe.rewrite

        def folded() -> None:
            nonlocal part
            part = part.model_copy(update={"macs": total_macs(loaded.model) or None})

        record.notes += rewrite(loaded.model, names, prepared.bits, folded)
    return part


def make_annotated(prepared: Prepared, stages: Stages) -> QuantPlan:
    """The plan without grids."""
    with stages.stage("annotate") as record:
        loaded = prepared.loaded
        plan = make_plan(loaded.model, prepared.target, prepared.bits, loaded.shown)
        record.notes.append(
            f"{len(plan.sites)} integer sites, {len(plan.data_movement_ops)} ops that move codes, "
            f"{len(plan.float_nodes)} ops stay float"
        )
        if plan.dynamic:
            record.notes.append(
                f"{len(plan.dynamic)} integer sites find the grids of their inputs while they run"
            )
        if plan.weight_only:
            record.notes.append(f"{len(plan.weight_only)} weights of float ops are stored as codes")
        ops = {n.name: n.op_type for n in prepared.loaded.model.graph}
        kinds: dict[str, list[str]] = {}
        for name, reason in plan.float_nodes.items():
            kinds.setdefault(reason, []).append(ops[name])
        for reason, found in kinds.items():
            listed = ", ".join(f"{found.count(op)} {op}" for op in sorted(set(found)))
            record.notes.append(f"float: {listed}: {reason}")
    return plan


def _calibrate(
    recipe: Recipe,
    prepared: Prepared,
    plan: QuantPlan,
    stages: Stages,
    threads: int,
    plan_file: Path | None,
    progress: Progress,
) -> QuantPlan:
    with stages.stage("calibrate") as record:
        if plan_file is not None:
            given = read_plan(plan_file)
            if not same_shape(given, plan):
                raise RecipeError(
                    f"plan {plan_file}: it was made for another model, target or recipe (bits, "
                    "granularity, layers); leave out --plan to calibrate"
                )
            record.notes.append(f"grids taken from {plan_file}; nothing was calibrated")
            # The weights are at hand: their grids are theirs, also after they were trained again.
            weights = plan.weight_only.union(s.weight or "" for s in plan.sites.values())
            taken = {k: g for k, g in given.grids.items() if k not in weights}
            reused = replace(plan, grids={**plan.grids, **taken})
            model = prepared.loaded.model
            weighed = weight_grids(model, reused, recipe.bits.scheme.build(SCHEMES))
            return constrain_weight_scales(model, weighed, prepared.target)
        parts = (
            prepared.loaded.sha256,
            str(prepared.inputs),
            prepared.calibration.digest,
            recipe.calibrate.model_dump_json(),
            recipe.bits.model_dump_json(),
            str(recipe.rewrite),
            repr(prepared.target),
            repr((plan.sites, plan.grid_of, plan.weight_only)),
        )

        def make() -> QuantPlan:
            return _grids(recipe, prepared, plan, threads, progress)

        found = stages.remembered(record, "grids", parts, make, _save_grids, _load_grids)
        return replace(plan, grids=found.grids, codes=found.codes, log=found.log)


def _grids(
    recipe: Recipe, prepared: Prepared, plan: QuantPlan, threads: int, progress: Progress
) -> QuantPlan:
    """Grids from the calibration data, as many samples at a time as fit in memory."""
    model, data = prepared.loaded.model, prepared.calibration
    done = 0

    def finished(count: int) -> None:
        nonlocal done
        done = min(done + count, data.count)
        progress("calibrate", done, data.count)

    rows = prepared.fixed_batch or batch_size(model, observed_values(model, plan), data.count)
    fixed = prepared.fixed_batch
    stream = (b for b, _ in data.padded(rows)) if fixed else data.batches(rows)
    batches = ({name: batch[name] for name in prepared.inputs} for batch in stream)
    calibrator = recipe.calibrate.method.build(CALIBRATORS)
    scheme = recipe.bits.scheme.build(SCHEMES)
    return make_grids(model, plan, batches, calibrator, scheme, threads, finished, prepared.target)


def _save_grids(plan: QuantPlan, path: Path) -> None:
    folder = path.with_name(path.name + ".plan")
    folder.mkdir(exist_ok=True)
    try:
        write_plan(plan, folder)
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("plan.json", "plan.npz"):
                archive.write(folder / name, name)
    finally:
        shutil.rmtree(folder)


def _load_grids(path: Path) -> QuantPlan:
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
        return read_plan(Path(folder) / "plan.json")


def _freeze_and_emit(
    recipe: Recipe, prepared: Prepared, plan: QuantPlan, stages: Stages, scratch: Path
) -> tuple[QuantPlan, ir.Model, QuantizedIO]:
    model, target, output = prepared.loaded.model, prepared.target, recipe.output
    with stages.stage("freeze") as record:
        plan = freeze(prepared.loaded.model, plan)
        record.notes += plan.log
    release_weight_pages(prepared.loaded.model)
    with stages.stage("emit") as record:
        emitted, ends, notes = emit_model(model, plan, target, output.format or "qdq", output.io)
        if output.io == "quantized" and not ends.inputs and not ends.outputs:
            raise recipe.error(("output", "io"), f"quantized: {'; '.join(notes)}; write io: float")
        record.notes += notes
        if target.runtime != "onnxruntime":
            record.notes.append(
                f"WARNING: kernels and latency in this report are those of ONNX Runtime, which "
                f"checks the file; {target.runtime} has its own"
            )
        missing = [name for name in target.isa if name not in instruction_sets()]
        if missing:
            record.notes.append(
                f"WARNING: files for {target.name} gain speed on processors with "
                f"{', '.join(missing)}, which this one lacks; its latency is not theirs"
            )
        save_model(emitted, scratch / "model.onnx")
    return plan, emitted, ends


def _report(
    recipe: Recipe,
    prepared: Prepared,
    plan: QuantPlan,
    emitted: ir.Model,
    stages: Stages,
    seed: int,
    part: ModelPart,
    found: Judgement,
    ends: QuantizedIO,
    lessons: TrainingPart | None,
) -> Report:
    path, loaded = stages.folder / "scratch" / "model.onnx", prepared.loaded
    whole, layers = file_parts(emitted)
    size = size_part(loaded.size or file_bytes(loaded.path), path, loaded.model, plan, whole)
    gates = judge(recipe.gates.model_dump(), found.accuracy, size, found.latency)
    calibration, judged = prepared.calibration, prepared.judged
    evaluation = DataPart(count=judged.count, sha256=judged.digest) if recipe.evaluate else None
    kernels = kernels_part(found.optimized, plan, found.saturating)
    own = prepared.target.runtime == "onnxruntime"  # else its pairs are no business of ONNX Runtime
    return Report(
        qtool=__version__,
        command="ptq" if lessons is None else "qat",
        seed=seed,
        passed=found.parity_passed and all(gate.passed for gate in gates),
        model=part,
        output=OutputPart(
            path="model.onnx",
            sha256=digest_of(written_files(path)),
            opset=loaded.model.opset_imports[""],
            format=recipe.output.format,
            **ends.described(),
        ),
        data=Data(
            calibration=DataPart(count=calibration.count, sha256=calibration.digest),
            training=lessons,
            evaluation=evaluation,
        ),
        accuracy=found.accuracy,
        size=size,
        latency=found.latency,
        parity=found.parity,
        kernels=kernels.model_copy(update={} if own else {"stray_quantize": []}),
        layers=layers_part(loaded.model, plan, found.noise, layers),
        stages=stages.done,
        gates=gates,
        environment=environment(),
    )


def _write(recipe: Recipe, plan: QuantPlan, report: Report, out: Path, scratch: Path) -> None:
    """Put the run folder's files in place, each whole or not at all; the report last."""
    written = written_files(scratch / "model.onnx")
    for path in reversed(written):  # the weights first: a reader who finds the file finds them too
        with atomic_path(out / path.name) as temporary:
            shutil.move(path, temporary)
    if len(written) == 1:
        (out / "model.onnx.data").unlink(missing_ok=True)  # of an earlier, larger model
    write_plan(plan, out)
    write_text_atomic(out / "recipe.yaml", recipe.dump())
    lines = [stage.model_dump_json(exclude_none=True) for stage in report.stages]
    lines += [json.dumps({"plan": line}) for line in plan.log]
    write_text_atomic(out / "log.jsonl", "\n".join(lines) + "\n")
    write_run_files(report, out)
