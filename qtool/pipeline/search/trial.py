"""Try recipes that differ in bits and steps: quantize, compare with the float network, weigh.

The model is read and the data opened once; every trial starts from a copy of the graph as it was
read, so that the same recipe in a run of its own gives the same plan.
"""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from qtool.graph.save import save_model
from qtool.pipeline.annotate_stage import make_plan
from qtool.pipeline.context import Prepared, RunOptions
from qtool.pipeline.prepare import prepare
from qtool.pipeline.search.reference import (
    check_real_samples,
    unused_reference,
    with_unused_samples,
)
from qtool.pipeline.stages import Emitted, emit, quantize, rewrite
from qtool.quant.freeze import freeze
from qtool.quant.plan import QuantPlan
from qtool.recipe.model import Recipe
from qtool.recipe.sections.layer_bits import resolve_bits
from qtool.recipe.target_defaults import add_default_steps
from qtool.search.effects import Reference
from qtool.search.sensitivity import Scan
from qtool.steps.context import Context
from qtool.steps.stage_cache import StageCache, StageRecord
from qtool.verification.file_size import file_bytes, written_files
from qtool.verification.layers.table import total_macs
from qtool.verification.ort_process import run_tasks
from qtool.verification.tasks import Profile, ProfileResult, write_feeds

# Samples that trials are compared on: as many as this many multiply-accumulates allow.
COMPARED_MACS = 8e10
MIN_COMPARED, MAX_COMPARED = 64, 2048
TRIAL = "trial"
PROFILED_RUNS = 10


@dataclass(frozen=True)
class TrialResult:
    """Outcome of one recipe on calibration samples.

    Attributes:
        kl, drop, drop_error: against the float network, see :class:`qtool.search.effects.Effect`.
        bytes: of the file.
        ms: of one sample in the file, the sum over its kernels, on the threads of the run; 0 where
            it is not measured yet.
        seconds: that quantizing took; those of an earlier run where it was cached.
        macs_per_second: speed of the quantized network's simulation.
    """

    kl: float
    drop: float | None
    drop_error: float | None
    bytes: int
    ms: float
    seconds: float
    macs_per_second: float


@dataclass
class TrialRunner:
    """Model and data of a search, shared by its trials.

    Attributes:
        source: the recipe without what is searched.
        prepared: of the source; its graph stays as it was read.
        folder: for files that are weighed and timed.
        fewer: calibration samples, where others were left out to compare networks on; else None.
    """

    source: Recipe
    prepared: Prepared
    folder: Path
    fewer: int | None = None
    _reference: Reference | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls, recipe: Recipe, cache: StageCache, options: RunOptions, folder: Path
    ) -> "TrialRunner":
        """Read the model and open the data.

        Args:
            recipe: without what is searched.
            cache: finished trials are kept there.
            options: of the run.
            folder: for files that are weighed and timed; exists.

        Raises:
            QtoolError: model or data are wrong, or the samples are synthetic.
        """
        cache = replace(cache, shared={})
        prepared = prepare(recipe, cache, options, partial(with_unused_samples, options=options))
        check_real_samples(prepared)
        count = prepared.recipe.calibrate.count
        return cls(recipe, prepared, folder, None if count == recipe.calibrate.count else count)

    @property
    def base(self) -> Recipe:
        """The recipe with the target's defaults; steps only where the user names them."""
        return self.prepared.recipe.model_copy(update={"ptq": self.source.ptq})

    def on_all_samples(self, recipe: Recipe) -> Recipe:
        """Return a recipe that calibrates on the samples that its trial was compared on, too.

        Args:
            recipe: was tried.
        """
        calibrate = recipe.calibrate.model_copy(update={"count": self.source.calibrate.count})
        return recipe.model_copy(update={"calibrate": calibrate})

    @property
    def reference(self) -> Reference:
        """Samples that trials are compared on, and outputs of the float network."""
        if self._reference is None:
            macs = total_macs(self.prepared.context.model)
            samples = int(np.clip(COMPARED_MACS / max(macs, 1), MIN_COMPARED, MAX_COMPARED))
            self._reference = unused_reference(self.prepared, samples)
        return self._reference

    def quantized(self, recipe: Recipe) -> tuple[QuantPlan, Context]:
        """Return the plan of a recipe, and the context with its rewritten graph.

        Args:
            recipe: differs from ``base`` in bits, ranges, rewrites and steps alone.
        """
        recipe, context = self._rewritten(recipe)
        return quantize(recipe, context).plan, context

    def file_bytes(self, recipe: Recipe) -> int:
        """Return the bytes of a recipe's file, which no step changes, without the steps' work.

        Args:
            recipe: as for :meth:`quantized`.
        """
        recipe, context = self._rewritten(recipe)
        plan = quantize(recipe.model_copy(update={"ptq": ()}), context).plan
        path = self.folder / "weighed.onnx"
        self.emitted(plan, context, path)
        return file_bytes(path)

    def graph(self, recipe: Recipe) -> Context:
        """Return a context with the graph that :meth:`quantized` would make a recipe's plan for.

        Args:
            recipe: as for :meth:`quantized`.
        """
        context = self._rewritten(recipe)[1]
        make_plan(context)  # it changes the graph where a value must be read at two widths
        return context

    def _rewritten(self, recipe: Recipe) -> tuple[Recipe, Context]:
        """Return the recipe with all its steps, and a context with the graph they need."""
        prepared = self.prepared
        model = prepared.loaded.model.clone()
        with recipe.locate_errors():
            bits = resolve_bits(recipe.bits, model, prepared.context.target)
        recipe = add_default_steps(recipe, bits.scale, prepared.context.calibration.count)
        context = replace(
            prepared.context,
            model=model,
            bits=replace(bits, code_outputs=recipe.output.io == "quantized"),
            cache=replace(prepared.context.cache, done=[]),
        )
        rewrite(recipe, context)
        return recipe, context

    def measure(self, recipe: Recipe) -> TrialResult:
        """Return the outcome of a recipe; that of an earlier run where it is finished.

        Args:
            recipe: as for :meth:`quantized`.
        """
        result = self.compare(recipe)
        milliseconds = self.prepared.context.cache.cached(
            StageRecord(),
            "milliseconds",
            self._parts(recipe),
            lambda: self._milliseconds(recipe),
            _save_number,
            _load_number,
        )
        return replace(result, ms=milliseconds)

    def compare(self, recipe: Recipe) -> TrialResult:
        """Return the outcome of a recipe but for its time, which other processes would falsify.

        Args:
            recipe: as for :meth:`quantized`.
        """
        return self.prepared.context.cache.cached(
            StageRecord(),
            TRIAL,
            self._parts(recipe),
            lambda: self._measure(recipe),
            _save,
            _load,
        )

    def is_finished(self, recipe: Recipe) -> bool:
        """Return whether :meth:`compare` has the outcome of a recipe already.

        Args:
            recipe: as for :meth:`quantized`.
        """
        return self.prepared.context.cache.is_finished(TRIAL, self._parts(recipe))

    def key(self, recipe: Recipe) -> str:
        """Return what differs for two recipes, samples or seeds, as the name of a file.

        Args:
            recipe: as for :meth:`quantized`.
        """
        return self.prepared.context.cache.path_for(TRIAL, self._parts(recipe)).name

    def _parts(self, recipe: Recipe) -> tuple[str, ...]:
        metric = self.reference.metric
        return (
            self.prepared.context.sha256,
            self.prepared.context.calibration.digest,
            self.reference.dataset.digest,
            metric.name if metric else "",
            recipe.model_dump_json(),
            str(self.prepared.context.seed),
        )

    def _milliseconds(self, recipe: Recipe) -> float:
        """Return the time of a recipe's file, which is written again after an interruption."""
        path = self.folder / f"{self.key(recipe)}.onnx"
        if not path.is_file():
            self.emitted(*self.quantized(recipe), path)
        (profile,) = self.profiled([path], PROFILED_RUNS)
        for file in written_files(path):
            file.unlink()
        return round(sum(profile.milliseconds.values()), 4)

    def profiled(self, files: Sequence[Path], runs: int) -> list[ProfileResult]:
        """Return the times of the kernels of files, on one calibration sample.

        Args:
            files: ONNX files with the model's inputs.
            runs: of each file.
        """
        context, threads = self.prepared.context, self.prepared.options.threads or 1
        calls = context.calibration.take([0]).calls(context.fixed_batch or 1, full=True)
        batch, _ = next(iter(calls))
        with tempfile.TemporaryDirectory(prefix="qtool-") as folder:
            scratch = Path(folder)
            feeds = scratch / "feeds.npz"
            write_feeds(feeds, {name: batch[name] for name in context.inputs})
            tasks = []
            for k, file in enumerate(files):
                (traces := scratch / str(k)).mkdir()
                tasks.append(Profile(str(file), str(feeds), str(traces), runs, threads))
            results = run_tasks(tuple(tasks), scratch)
        return [results[task] for task in tasks]

    def emitted(self, plan: QuantPlan, context: Context, path: Path) -> Emitted:
        """Write the file of a plan.

        Args:
            plan: of :meth:`quantized`.
            context: of :meth:`quantized`.
            path: of the file.
        """
        frozen = freeze(context.model, plan)
        emitted, _ = emit(self.prepared.recipe, context, frozen, path)
        save_model(emitted.model, path)
        return emitted

    def scan(self, plan: QuantPlan, context: Context, count: int) -> Scan:
        """Return the scan of what each site costs alone, on evenly spread reference samples.

        Args:
            plan: of :meth:`quantized`.
            context: of :meth:`quantized`.
            count: of the samples, at most.
        """
        whole = self.reference.dataset
        samples = whole.take(whole.choose(min(count, whole.count)))
        return Scan(plan, Reference(context, samples), parts=("both",), cumulative=False)

    def _measure(self, recipe: Recipe) -> TrialResult:
        start = time.perf_counter()
        plan, context = self.quantized(recipe)
        seconds = time.perf_counter() - start
        data, start = self.reference.dataset, time.perf_counter()
        outputs = context.outputs(data, plan, stage="compare")
        speed = data.count * max(total_macs(context.model), 1) / (time.perf_counter() - start)
        effect = self.reference.effect(outputs)
        path = self.folder / f"{self.key(recipe)}.onnx"
        self.emitted(plan, context, path)
        return TrialResult(
            kl=effect.kl,
            drop=effect.drop,
            drop_error=effect.drop_error,
            bytes=file_bytes(path),
            ms=0.0,
            seconds=round(seconds, 2),
            macs_per_second=speed,
        )


def with_bits(recipe: Recipe, layers: Mapping[str, object], **widths: object) -> Recipe:
    """Return the recipe with other bits.

    Args:
        recipe: to change.
        layers: patterns to widths as YAML has them; they follow those of the recipe.
        widths: other keys of ``bits``.
    """
    bits = recipe.bits.model_dump(mode="json", exclude_none=True, exclude={"budget"})
    bits = {**bits, **widths, "layers": {**bits.get("layers", {}), **layers}}
    changed = recipe.model_copy(update={"bits": type(recipe.bits).model_validate(bits)})
    changed._document = recipe._document
    return changed


def _save_number(number: float, path: Path) -> None:
    path.write_text(json.dumps(number))


def _load_number(path: Path) -> float:
    return float(json.loads(path.read_text()))


def _save(result: TrialResult, path: Path) -> None:
    path.write_text(json.dumps(vars(result)))


def _load(path: Path) -> TrialResult:
    return TrialResult(**json.loads(path.read_text()))
