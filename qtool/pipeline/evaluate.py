"""After the file is written: what ONNX Runtime and the simulation say of it."""

import importlib
import signal
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qtool.calibration.collect import batch_size, observed_values
from qtool.data import DataSection
from qtool.metrics.registry import METRICS, Metric, MetricResult, find_metric, score_outputs
from qtool.pipeline.prepare import Prepared
from qtool.progress import Progress
from qtool.quant.plan import QuantPlan
from qtool.recipe.model import Recipe
from qtool.report.report import (
    PARITY_MAX_LSB,
    PARITY_SHARE_OFF,
    PARITY_SHARE_OFF_AFTER_FLOAT,
    PARITY_SHARE_OFF_WIDE,
    Accuracy,
    IntegerOnly,
    Latency,
    Parity,
)
from qtool.runtime.ort_options import default_threads
from qtool.steps.stage_cache import Record, Stages
from qtool.verification.captured_outputs import capturable_values, sample_count, with_outputs
from qtool.verification.environment import instruction_sets
from qtool.verification.integer_reference import integer_only, saturating
from qtool.verification.ort_worker import run_tasks
from qtool.weights.int16_saturation import adds_pairs, at_risk


@dataclass(frozen=True)
class Judgement:
    """What was measured on the file.

    Attributes:
        noise: weighted site -> dB that the layer loses by itself, None where nothing.
        optimized: the graph ONNX Runtime executes.
        saturating: layers in which pairs of products can leave int16, here or on the target.
    """

    accuracy: Accuracy
    latency: Latency
    parity: Parity
    parity_passed: bool
    optimized: ir.Model
    noise: dict[str, float | None]
    saturating: list[str]


@dataclass(frozen=True)
class Judge:
    """One run's file and what judging it needs.

    Attributes:
        scratch: holds ``model.onnx``; captures and outputs go there.
        threads: as the user gave them, or None.
        device: where the simulation runs.
    """

    recipe: Recipe
    prepared: Prepared
    plan: QuantPlan
    stages: Stages
    scratch: Path
    threads: int | None
    device: str
    progress: Progress

    @property
    def model(self) -> ir.Model:
        """The rewritten float graph."""
        return self.prepared.loaded.model

    def run(self, emitted: ir.Model) -> Judgement:
        """Measure everything; the child process first, while this one is idle."""
        judged = self.prepared.judged
        samples = sample_count(self.model, judged.count)
        chosen = [int(k) for k in np.linspace(0, judged.count - 1, samples)]
        names = capturable_values(emitted, self.plan)
        with self.stages.stage("verify") as record:
            # Weights that went to a file of their own are read from there by this one too.
            ir.save(with_outputs(emitted, names), self.scratch / "watched.onnx")
            save_feeds(self.prepared, self.scratch / "feeds.npz")
            results = run_tasks(
                self._tasks(names, chosen), self.scratch, self.progress, meanwhile=_import_torch
            )
            record.child_mb = max(r.pop("peak_rss_mb") for r in results)
            if self.prepared.loaded.big:
                record.notes.append("latency: timed in turn, only one session alive at a time")
            record.notes.append(f"the file loads in {results[0]['load_seconds'] * 1e3:.0f} ms")
        parity, passed = self._parity(names, samples, results[1]["saved"])
        if self.prepared.target.integer_only:
            parity = parity.model_copy(update={"integer_only": self._integer_only(names, chosen)})
        risky = self._saturating(names, results[1]["saved"])
        noise = self._noise(chosen[: max(1, samples // 2)])
        accuracy, end_to_end = self._accuracy()
        return Judgement(
            accuracy,
            Latency(**results[-1]),
            parity.model_copy(update={"end_to_end_agreement": end_to_end}),
            passed,
            ir.load(self.scratch / "optimized.onnx"),
            noise,
            risky,
        )

    def _tasks(self, names: Iterable[str], chosen: Sequence[int]) -> list[dict[str, Any]]:
        prepared = self.prepared
        quantized = str(self.scratch / "model.onnx")
        both = {"float": str(prepared.loaded.path), "quantized": quantized}
        data = data_keys(prepared, self.threads)
        captures = self.scratch / "parity"
        captures.mkdir()
        optimize = {"model": quantized, "optimized": str(self.scratch / "optimized.onnx")}
        capture = {
            "model": str(self.scratch / "watched.onnx"),
            "outputs": list(names),
            "out": str(captures),
            "indices": [prepared.indices[k] for k in chosen],
            "batch": prepared.fixed_batch or 1,
        }
        dynamic = bool(self.plan.dynamic)
        big = prepared.loaded.big
        timing = {"feeds": str(self.scratch / "feeds.npz"), "threads": self.threads or 1}
        return [
            {"kind": "optimize", "threads": 1, "big": big, **optimize},
            # On several threads an LSTM finds grids for parts of a batch.
            {"kind": "capture", **capture, **data, **({"threads": 1} if dynamic else {})},
            *evaluations(both, prepared, self.scratch, data, dynamic),
            {"kind": "latency", "big": big, **timing, **both},
        ]

    def _parity(self, names: Mapping[str, str], samples: int, saved: int) -> tuple[Parity, bool]:
        from qtool.verification.parity import compare

        with self.stages.stage("parity") as record:
            in_floats = self.recipe.output.format == "qonnx"
            folder = self.scratch / "parity"
            counts = compare(self.model, self.plan, folder, names, saved, in_floats=in_floats)
            integer, floats, wide = counts.integer, counts.after_float, counts.wide
            record.notes.append(
                f"integer kernels: {integer.off} of {integer.total} codes differ; after float ops: "
                f"{floats.off} of {floats.total}"
            )
            if wide.total:
                record.notes.append(
                    f"values of more than 8 bits, computed in floats: {wide.off} of {wide.total} "
                    f"codes differ, by {wide.largest} at most"
                )
            for name, off in sorted(counts.worst.items(), key=lambda kv: -kv[1])[:5]:
                record.notes.append(f"{name}: {off} codes differ")
        largest = max(integer.largest, floats.largest, wide.largest)
        passed = (
            integer.share <= PARITY_SHARE_OFF
            and floats.share <= PARITY_SHARE_OFF_AFTER_FLOAT
            and wide.share <= PARITY_SHARE_OFF_WIDE
            and largest <= PARITY_MAX_LSB
        )
        found = Parity(
            samples=samples,
            max_lsb=largest,
            share_off=(integer.off + floats.off) / max(integer.total + floats.total, 1),
            wide_share_off=wide.share if wide.total else None,
        )
        return found, passed

    def _integer_only(self, names: Mapping[str, str], chosen: Sequence[int]) -> IntegerOnly:
        """The reference without floats on the captured samples, beside the file's outputs."""
        outputs = np.load(self.scratch / "quantized.npy", mmap_mode="r")
        with self.stages.stage("integers") as record:
            rows = [outputs[k : k + 1] for k in chosen]
            found = integer_only(self.model, self.plan, self.scratch / "parity", names, rows)
            record.notes.append(
                f"the reference without floats: at most {found.max_lsb} apart from the file in a "
                f"layer, {found.share_off:.2g} of all codes differ"
            )
        return found

    def _saturating(self, names: Mapping[str, str], saved: int) -> list[str]:
        """Layers whose pairs of products can leave int16 where they are added in int16."""
        if not (self.prepared.target.int16_pairs or adds_pairs(instruction_sets())):
            return []
        found = at_risk(self.model, self.plan)
        if found:
            with self.stages.stage("saturation") as record:
                record.notes += saturating(
                    self.model, self.plan, self.scratch / "parity", names, saved
                )
        return found

    def _noise(self, chosen: Sequence[int]) -> dict[str, float | None]:
        from qtool.verification.layer_sqnr import layer_noise

        with self.stages.stage("layers"):
            batches = self.prepared.judged.take(chosen).padded(self.prepared.fixed_batch or 1)
            feeds = [{n: batch[n] for n in self.prepared.inputs} for batch, _ in batches]
            found = layer_noise(self.model, self.plan, feeds)
        return {name: noise.db for name, noise in found.items()}

    def _accuracy(self) -> tuple[Accuracy, float | None]:
        """Accuracy of float, simulation and file, and how often the last two agree (in %)."""
        judged = self.prepared.judged
        outputs: dict[str, np.ndarray] = {
            k: np.load(self.scratch / f"{k}.npy", mmap_mode="r") for k in ("float", "quantized")
        }
        metric = metric_of(self.recipe, self.prepared)
        classes = metric is None or metric[1].classes
        pair = agreement(outputs["float"], outputs["quantized"]) if classes else None
        if metric is None and pair is None:  # no classes: what differs from float says more
            metric = ("sqnr", METRICS["sqnr"])
        if metric is None:
            return Accuracy(samples=judged.count, agreement=pair), None
        with self.stages.stage("simulate") as record:
            outputs["simulated"] = self._simulate(record)
            found = score_outputs(metric[1], outputs, judged.labels)
            record.notes += chance_notes(metric[0], found, judged.labels)
        both = (outputs["simulated"], outputs["quantized"])
        return told(metric, found, judged.count, pair), agreement(*both) if classes else None

    def _simulate(self, record: Record) -> np.ndarray:
        """First output of the fake-quantized network on all judged samples."""
        from qtool.simulation.dynamic import one_thread
        from qtool.simulation.fake_quant import Simulation

        judged = self.prepared.judged
        simulation = Simulation(self.model, self.plan, self.device)
        first = self.model.graph.outputs[0].name or ""
        fits = batch_size(self.model, observed_values(self.model, self.plan), judged.count)
        rows = self.prepared.fixed_batch or (1 if self.plan.dynamic else fits)
        if self.plan.dynamic:
            record.notes.append(
                "grids found while the network runs cover a whole batch, so outputs depend on what "
                f"is in it; the file was judged at batch {rows}"
            )
        parts, done = [], 0
        with one_thread() if rows == 1 else nullcontext():
            for batch, valid in judged.padded(rows):
                feeds = {name: batch[name] for name in self.prepared.inputs}
                parts.append(simulation(feeds, [first])[first][:valid].cpu().numpy())
                done += valid
                self.progress("simulate", done, judged.count)
        if simulation.executor.fallbacks:
            record.notes.append(f"ran in ONNX Runtime, op by op: {simulation.executor.fallbacks}")
        return np.concatenate(parts)


def data_keys(prepared: Prepared, threads: int | None) -> dict[str, Any]:
    """What the verifying child needs to read the judged samples."""
    return {
        "section": prepared.section.model_dump(
            mode="json", exclude_none=True, include=set(DataSection.model_fields)
        ),
        "inputs": [[s.name, list(s.shape), s.dtype] for s in prepared.inputs.values()],
        "threads": threads or default_threads(),
        "trust_code": prepared.trust_code,
    }


def evaluations(
    both: Mapping[str, str],
    prepared: Prepared,
    scratch: Path,
    data: Mapping[str, Any],
    dynamic: bool,
) -> list[dict[str, Any]]:
    """Tasks that run each file, by name, on all judged samples.

    Grids that are found at run time depend on the batch: such a file gets the samples one by one.
    """
    return [
        {
            "kind": "evaluate",
            "name": name,
            "model": path,
            "out": str(scratch / f"{name}.npy"),
            "indices": list(prepared.indices),
            **data,
            **({"rows": 1} if dynamic and name == "quantized" else {}),
        }
        for name, path in both.items()
    ]


def save_feeds(prepared: Prepared, path: Path) -> None:
    """The batch that latency is timed on: one sample, or the model's own batch size."""
    first = next(iter(prepared.judged.take([0]).padded(prepared.fixed_batch or 1)))[0]
    feeds = {name: first[name] for name in prepared.inputs}
    np.savez(path, **feeds)  # type: ignore[arg-type]


def metric_of(recipe: Recipe, prepared: Prepared) -> tuple[str, Metric] | None:
    """The metric by name; None where there is nothing to hold outputs against."""
    evaluate = recipe.evaluate
    if evaluate is None or (evaluate.metric is None and prepared.judged.labels is None):
        return None
    name = evaluate.metric or "top1"
    return name, find_metric(name, evaluate.code, prepared.trust_code)


def _import_torch() -> None:
    """Torch takes a second to import; the verifying child is busy elsewhere for as long.

    An exception out of a signal handler in the middle of it would abort the process: an
    interruption waits for the end of the import.
    """
    waiting: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        importlib.import_module("qtool.verification.parity")
        return
    held = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    for number in held:
        signal.signal(number, lambda s, frame: waiting.append(s))
    try:
        importlib.import_module("qtool.verification.parity")
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
    if waiting:
        raise KeyboardInterrupt


def told(
    metric: tuple[str, Metric], found: MetricResult, samples: int, pair: float | None
) -> Accuracy:
    """What the report says of accuracy; against the float model, float itself is left out."""
    ends = found.interval
    values = {k: v for k, v in found.values.items() if not (metric[1].reference and k == "float")}
    return Accuracy(
        metric=metric[0],
        unit=metric[1].unit or None,
        samples=samples,
        drop=None if found.drop is None else round(found.drop, 6),
        drop_ci95=None if ends is None else (round(ends[0], 4), round(ends[1], 4)),
        agreement=pair,
        **{name: round(value, 6) for name, value in values.items()},
    )


def at_chance(values: Mapping[str, float], labels: np.ndarray | None) -> bool:
    """True when float top-1 (in %) does not beat the share of the most frequent label."""
    if labels is None or "float" not in values or labels.ndim != 1 or len(labels) < 20:
        return False
    share = np.unique(labels, return_counts=True)[1].max() / len(labels)
    return values["float"] <= 100 * float(share)


def chance_notes(metric: str, found: MetricResult, labels: np.ndarray | None) -> list[str]:
    """A warning where the float model has learned nothing that the data shows."""
    if metric not in ("top1", "accuracy") or not at_chance(found.values, labels):
        return []
    return [
        "WARNING: the float model is no better than always naming one class, so the drop says "
        "nothing: check preprocess, and the order of the labels"
    ]


def agreement(a: np.ndarray, b: np.ndarray) -> float | None:
    """Share of equal argmax in %, or None where the output has no classes."""
    if a.ndim < 2 or a.shape[1] < 2:
        return None
    return round(100 * float(np.mean(a.argmax(1) == b.argmax(1))), 4)
