"""Measure the written file: accuracy, latency, kernels, parity with the simulation, layers.

One evaluator serves ``ptq``, ``qat`` and ``verify``; under ``verify`` there is no plan, so parity
and layers are not measured.
"""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qtool.calibration.batch_size import batch_size, held_elements
from qtool.calibration.collect import observed_values
from qtool.errors import UnsupportedError
from qtool.metrics.label_order import LabelOrder, find_label_order
from qtool.metrics.registry import DEFAULT_METRIC, find_metric
from qtool.pipeline.checks.plan_evaluator import Captured, PlanEvaluator
from qtool.pipeline.context import Prepared
from qtool.pipeline.deferred_import import import_simulation
from qtool.pipeline.processes.evaluation import SharedEvaluations
from qtool.pipeline.stages import Emitted
from qtool.report.latency_schema import Latency
from qtool.report.layer_schema import OutputQuality
from qtool.report.schema import Accuracy, Parity
from qtool.runtime.ort_options import default_threads
from qtool.runtime.row_stack import stack_rows
from qtool.runtime.torch_threads import torch_threads
from qtool.steps.stage_cache import StageRecord
from qtool.verification.accuracy import (
    NamedMetric,
    measure_accuracy,
    metric_for,
    with_simulated,
)
from qtool.verification.captured_outputs import capturable_values, sample_count, with_outputs
from qtool.verification.changes.classes import with_classes
from qtool.verification.changes.samples import with_changed_samples
from qtool.verification.kernel_times import with_kernel_times
from qtool.verification.layers.measure import LayerMeasure
from qtool.verification.ort_process import run_tasks
from qtool.verification.output_sqnr import output_slices, outputs_part
from qtool.verification.tasks import (
    Capture,
    CompareOutputs,
    Evaluate,
    Optimize,
    Profile,
    Samples,
    TimePair,
    write_feeds,
)


@dataclass(frozen=True)
class Evaluation:
    """Measurements of one file.

    Attributes:
        accuracy: of the float model, the simulation and the file; None where no data was read.
        latency: of both files.
        optimized: the graph that ONNX Runtime executes.
        parity: with the integer-exact simulation; None without a plan.
        layers: layer -> its noise and the values that it reads.
        saturating: layers in which pairs of products can leave int16, here or on the target.
        outputs: quality of every output and of the quantities in it.
        label_order: an order of the classes in which the float model scores far better.
    """

    accuracy: Accuracy | None
    latency: Latency
    optimized: ir.Model
    parity: Parity | None
    layers: Mapping[str, LayerMeasure]
    saturating: list[str]
    outputs: list[OutputQuality]
    label_order: LabelOrder | None = None

    @property
    def parity_passed(self) -> bool:
        """True where the file agrees with the simulation, or there is no plan to compare with."""
        return self.parity is None or self.parity.passed


@dataclass(frozen=True)
class Evaluator:
    """Measurement of one file of a run.

    Attributes:
        prepared: the float model, the data and the settings.
        file: the quantized file.
        scratch: an existing folder for intermediate results.
        emitted: the plan that the file was written from; None for files of other tools.
        dynamic: the file computes grids at run time, so its outputs depend on the batch.
    """

    prepared: Prepared
    file: Path
    scratch: Path
    emitted: Emitted | None = None
    dynamic: bool = False

    def run(self) -> Evaluation:
        """Run the file in the child process, then compare its outputs in this one."""
        latency, captured, qualities = self._run_file()
        outputs = {
            name: np.load(path, mmap_mode="r")
            for name in ("float", "quantized")
            if (path := self.scratch / f"{name}.npy").is_file()
        }
        optimized = ir.load(self.scratch / "optimized.onnx")
        accuracy, metric = self._accuracy(outputs)
        label_order = self._label_order(metric, outputs)
        if self.emitted is None or captured is None:
            return Evaluation(accuracy, latency, optimized, None, {}, [], qualities, label_order)
        layers = PlanEvaluator(self.prepared, self.emitted, captured)
        parity = layers.parity(self.prepared.recipe.output.format == "qonnx")
        if self.prepared.context.target.integer_only and outputs:
            rows = [outputs["quantized"][k : k + 1] for k in captured.chosen]
            parity = parity.model_copy(update={"integer_only": layers.integer_only(rows)})
        saturating = layers.saturating()
        measures = layers.measure()
        accuracy, same = self._with_simulated(accuracy, metric, outputs)
        parity = parity.model_copy(update={"end_to_end_agreement": same})
        return Evaluation(
            accuracy, latency, optimized, parity, measures, saturating, qualities, label_order
        )

    def _run_file(self) -> tuple[Latency, Captured | None, list[OutputQuality]]:
        """Run both files in the child process; write outputs and executed graph to ``scratch``."""
        prepared, context = self.prepared, self.prepared.context
        big, threads = prepared.loaded.big, prepared.options.threads
        paths = {"float": str(prepared.loaded.path), "quantized": str(self.file)}
        with context.cache.stage("verify") as record:
            feeds, rows = self.scratch / "feeds.npz", context.fixed_batch or 1
            write_feeds(feeds, prepared.first_batch())
            optimize = Optimize(str(self.file), str(self.scratch / "optimized.onnx"), big=big)
            pair = (paths["float"], paths["quantized"], str(feeds))
            latency = TimePair(*pair, rows, threads or 1, big)
            evaluations = tuple(
                Evaluate(
                    name=name,
                    model=path,
                    path=str(self.scratch / f"{name}.npy"),
                    samples=self._samples(),
                    # Grids computed at run time depend on the batch: samples one by one.
                    rows=1 if self.dynamic and name == "quantized" else None,
                    threads=threads or default_threads(),
                    output=output,
                )
                for output in self._evaluated_output(record)
                for name, path in paths.items()
            )
            capture, captured = self._capture()
            compare = self._compare(paths)
            shared = SharedEvaluations(evaluations)
            # A second session of a big file would cost its memory and minutes of loading.
            profile = None if big else Profile(str(self.file), str(feeds), str(self.scratch), 10)
            tasks = (optimize, *((capture,) if capture else ()), *shared.own, compare, latency)
            tasks += (profile,) if profile else ()

            def meanwhile() -> None:
                if capture:  # importing torch takes a second, during which the child already runs
                    import_simulation()
                shared.wait()

            results = run_tasks(tasks, self.scratch, context.progress, meanwhile)
            shared.join()
            record.child_mb = results.peak_rss_mb
            if big:
                record.notes.append("latency: timed in turn, only one session alive at a time")
            record.notes.append(f"the file loads in {results[optimize].load_seconds * 1e3:.0f} ms")
        if capture is not None and captured is not None:
            captured = Captured(
                captured.names, captured.chosen, captured.folder, results[capture].files
            )
        qualities = outputs_part(compare.slices, results[compare])
        timing = Latency(**vars(results[latency]))
        if profile is not None:
            timing = with_kernel_times(timing, results[profile])
        return timing, captured, qualities

    def _evaluated_output(self, record: StageRecord) -> tuple[int, ...]:
        """Return the position of the output that is evaluated; none where all sizes vary."""
        outputs = [value.name for value in self.prepared.context.model.graph.outputs]
        name = self.prepared.context.evaluated_output
        if name is None:
            record.notes.append(
                "the size of every output depends on values (behind NonMaxSuppression and its "
                "kin), so the outputs of the two files are not compared; parity is"
            )
            return ()
        if name != outputs[0]:
            record.notes.append(
                f"the output {name} is evaluated, as the size of {outputs[0]} depends on values"
            )
        return (outputs.index(name),)

    def _samples(self, chosen: tuple[int, ...] | None = None) -> Samples:
        """Return the evaluation samples, or some of them, as the child reads them."""
        data = self.prepared.evaluation
        indices = data.indices if chosen is None else tuple(data.indices[k] for k in chosen)
        context = self.prepared.context
        return Samples.of(data.section, context.inputs, indices, context.trust_code, data.states)

    def _capture(self) -> tuple[Capture | None, Captured | None]:
        """Return the task that captures intermediate outputs, where there is a plan."""
        if self.emitted is None:
            return None, None
        context, chosen = self.prepared.context, self._chosen()
        names = capturable_values(self.emitted.model, self.emitted.plan)
        # External data is not copied: this file refers to the same data file.
        ir.save(with_outputs(self.emitted.model, names), self.scratch / "captured.onnx")
        folder = self.scratch / "parity"
        folder.mkdir()
        threads = self.prepared.options.threads or default_threads()
        task = Capture(
            model=str(self.scratch / "captured.onnx"),
            outputs=tuple(names),
            folder=str(folder),
            samples=self._samples(chosen),
            rows=context.fixed_batch or 1,
            # On several threads an LSTM computes grids for parts of a batch.
            threads=1 if self.dynamic else threads,
        )
        return task, Captured(names, chosen, folder, 0)

    def _chosen(self) -> tuple[int, ...]:
        """Return the positions of the few samples that are compared value by value."""
        count = self.prepared.evaluation.dataset.count
        samples = sample_count(self.prepared.context.model, count)
        return tuple(int(k) for k in np.linspace(0, count - 1, samples))

    def _compare(self, paths: Mapping[str, str]) -> CompareOutputs:
        """Return the task that compares all outputs of both files."""
        context = self.prepared.context
        return CompareOutputs(
            paths["float"],
            paths["quantized"],
            output_slices(context.model),
            self._samples(self._chosen()),
            rows=context.fixed_batch or 1,
            threads=1 if self.dynamic else self.prepared.options.threads or default_threads(),
        )

    def _accuracy(
        self, outputs: Mapping[str, np.ndarray]
    ) -> tuple[Accuracy | None, NamedMetric | None]:
        """Return the accuracy of both files, and the metric; None where the samples are made up."""
        shapes = {name: list(array.shape) for name, array in outputs.items()}
        if shapes.get("float") != shapes.get("quantized"):
            raise UnsupportedError(
                f"the quantized file's first output has shape {shapes['quantized']} on all "
                f"samples, expected {shapes['float']} as that of the float model; give the float "
                "model the file was made from"
            )
        data = self.prepared.evaluation.dataset
        if data.synthetic or not outputs:
            return None, None
        metric, labels = metric_for(recipe_metric(self.prepared), outputs["float"]), data.labels
        with self.prepared.context.cache.stage("accuracy"):
            accuracy = measure_accuracy(metric, outputs, labels)
            if metric is not None and accuracy.classes is not None and labels is not None:
                accuracy = with_classes(accuracy, outputs, labels, data.classes)
            evaluate = self.prepared.recipe.evaluate
            images = 0 if evaluate is None else evaluate.thumbnails
            return with_changed_samples(accuracy, outputs, data, images), metric

    def _label_order(
        self, metric: NamedMetric | None, outputs: Mapping[str, np.ndarray]
    ) -> LabelOrder | None:
        """Return an order of the classes that fits the float model far better than the labels."""
        data = self.prepared.evaluation.dataset
        if metric is None or not metric.metric.class_labels or data.labels is None:
            return None
        with self.prepared.context.cache.stage("labels") as record:
            scores = outputs["float"].reshape(data.count, -1)
            order = find_label_order(scores, data.labels, data.classes)
            record.notes += [] if order is None else [f"WARNING: {order.describe()}"]
        return order

    def _with_simulated(
        self,
        accuracy: Accuracy | None,
        metric: NamedMetric | None,
        outputs: Mapping[str, np.ndarray],
    ) -> tuple[Accuracy | None, float | None]:
        """Return the accuracy with that of the simulation on some of the samples."""
        if accuracy is None or metric is None or self.emitted is None:
            return accuracy, None
        data, recipe = self.prepared.evaluation.dataset, self.prepared.recipe
        limit = recipe.evaluate.simulate if recipe.evaluate is not None else "all"
        count = data.count if limit == "all" else min(int(limit), data.count)
        chosen = data.choose(count)
        with self.prepared.context.cache.stage("simulate") as record:
            subset = {
                name: stack_rows((array[k : k + 1] for k in chosen), count)
                for name, array in outputs.items()
            }
            subset["simulated"] = self._simulate(self.emitted, chosen, record)
            if count < data.count:
                record.notes.append(
                    f"{count} of {data.count} evaluation samples were simulated, "
                    f"{'evenly spread' if data.loop is None else 'the first calls of each stream'};"
                    " evaluate.simulate: all simulates every sample"
                )
            labels = None if data.labels is None else data.labels[chosen]
            return with_simulated(accuracy, metric, subset, labels)

    def _simulate(self, emitted: Emitted, chosen: list[int], record: StageRecord) -> np.ndarray:
        """Return the evaluated output of the fake-quantized network on some samples."""
        from qtool.simulation.fake_quant import Simulation

        context, plan = self.prepared.context, emitted.plan
        simulation = Simulation(context.model, plan, context.device)
        observed = observed_values(context.model, plan)
        rows = batch_size(held_elements(context.model, observed), len(chosen))
        rows = context.fixed_batch or (1 if plan.dynamic else rows)
        if plan.dynamic:
            why = "grids computed at run time cover a whole batch: outputs depend on what is in it"
            record.notes.append(f"{why}; the file was evaluated at batch {rows}")
        data = self.prepared.evaluation.dataset.take(chosen)
        names = [context.evaluated_output or "", *data.fed_back]
        compute = simulation.computing(context.inputs, names)

        def outputs() -> Iterator[np.ndarray]:
            done = 0
            for output, _ in data.outputs(compute, names[0], rows, context.fixed_batch):
                yield output
                done += len(output)
                context.progress("simulate", done, len(chosen))

        with torch_threads(1) if rows == 1 else nullcontext():
            simulated = stack_rows(outputs(), len(chosen))
        if simulation.executor.fallbacks:
            record.notes.append(f"ran in ONNX Runtime, op by op: {simulation.executor.fallbacks}")
        return simulated


def recipe_metric(prepared: Prepared) -> NamedMetric | None:
    """Return the recipe's metric; None where there are no labels and no metric."""
    evaluate = prepared.recipe.evaluate
    if evaluate is None:
        return None
    if evaluate.metric is None and prepared.evaluation.dataset.labels is None:
        return None
    name = evaluate.metric or DEFAULT_METRIC
    return NamedMetric(name, find_metric(name, evaluate.code, prepared.context.trust_code))
