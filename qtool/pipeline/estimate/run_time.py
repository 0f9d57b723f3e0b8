"""Estimate seconds and memory of a run before it starts, from one timed inference.

Everything that a run does to a sample costs a multiple of the float network's inference, so the
estimate holds on a slow or a busy machine too. The factors were fitted to processor seconds of one
thread; estimated and measured were 13 and 16 s (MobileNetV2), 22 and 13 s (ResNet-56), 34 and 23 s
(ResNet-56, 4 bits, two steps), 10 and 8 s (100 million weights, 8 bits), 16 and 12 s (4 bits),
40 and 56 s (400 million weights that stay in their file, on a busy machine).
"""

import time
from dataclasses import dataclass

import numpy as np

from qtool.calibration import CALIBRATORS
from qtool.calibration.collect import observed_values
from qtool.graph.queries import by_name, is_constant, macs, parameters
from qtool.pipeline.calibration.grids import weight_scheme
from qtool.pipeline.context import Prepared
from qtool.pipeline.estimate.file_size import estimate_file_bytes
from qtool.pipeline.estimate.memory import megabytes, memory_need
from qtool.pipeline.input_checks import MAX_PARAMETERS
from qtool.pipeline.stages import ptq_steps
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import QuantSpec
from qtool.runtime.ort_session import OrtSession
from qtool.steps.context import MAX_HOLDOUT
from qtool.verification.captured_outputs import sample_count
from qtool.weights.grids import scheme_for
from qtool.weights.scheme import WeightScheme

# Multiply-accumulates a second of a network that is too large to be loaded for a measurement.
MACS_PER_SECOND = 2e10
# Seconds of any run: imports, the child process, 50 pairs of timed runs.
START_SECONDS = 5.0
# Inferences that each use of a sample costs.
CALIBRATE, EVALUATE, SIMULATE, CAPTURE, STEP = 1.5, 1.2, 4.0, 12.0, 6.0
# Float weights a second that are hashed, checked, written and loaded again: in memory, and mapped
# from a file, whose pages every pass over the weights reads again.
WEIGHTS_PER_SECOND, MAPPED_PER_SECOND = 5e7, 1.2e7
# Seconds from which a run is announced, and up to which it is not estimated: by the seconds of a
# call of a small network, and the weights a second of the slowest scheme.
LONG, SHORT, CALL_SECONDS, FEWEST_PER_SECOND = 10.0, 2.0, 5e-4, 2e6
# Timed inferences, of which the fastest counts, and weights that a scheme is timed on.
TRIALS, TIMED = 3, 1 << 17


@dataclass(frozen=True)
class Estimate:
    """Rough time and memory of a run, and the size of its file.

    Attributes:
        seconds: of the whole run.
        memory_bytes: largest memory of all its processes together.
        file_bytes: of the quantized file; None where the format cannot hold the plan.
    """

    seconds: float
    memory_bytes: int
    file_bytes: int | None

    def describe(self) -> str:
        """Return the numbers in one line."""
        parts = [_duration(self.seconds), f"{megabytes(self.memory_bytes)} of memory"]
        if self.file_bytes is not None:
            parts.append(f"a file of {_size(self.file_bytes)}")
        return ", ".join(parts)


def estimate_run(prepared: Prepared, plan: QuantPlan) -> Estimate:
    """Estimate a run of ``qtool ptq`` whose graph is rewritten.

    Args:
        prepared: recipe, model and data.
        plan: annotated, without grids.
    """
    context, recipe = prepared.context, prepared.recipe
    scheme = weight_scheme(recipe, plan)
    return Estimate(
        seconds=START_SECONDS
        + _sample_work(prepared, plan) * _inference_seconds(prepared)
        + _weight_seconds(prepared, plan),
        memory_bytes=memory_need(prepared, plan).size,
        file_bytes=estimate_file_bytes(recipe, context.model, plan, context.target, scheme),
    )


def announce_estimate(prepared: Prepared, plan: QuantPlan) -> None:
    """Show the estimate of a run that takes longer than LONG, before it starts.

    Args:
        prepared: recipe, model and data.
        plan: annotated, without grids.
    """
    context = prepared.context
    each = sum(macs(node) for node in context.model.graph) / MACS_PER_SECOND + CALL_SECONDS
    weights = parameters(context.model.graph) / FEWEST_PER_SECOND
    if _sample_work(prepared, plan) * each + weights < SHORT:
        return  # not even worth the timed inferences
    with context.cache.stage("estimate") as record:
        estimate = estimate_run(prepared, plan)
        record.notes.append(f"estimate: {estimate.describe()}")
    if estimate.seconds > LONG:
        context.progress("estimate", 1, 1, estimate.describe())


def _sample_work(prepared: Prepared, plan: QuantPlan) -> float:
    """Return the work on all samples, in inferences of the float network."""
    context, recipe = prepared.context, prepared.recipe
    calibrator = recipe.calibrate.method.build(CALIBRATORS)
    evaluated = prepared.evaluation.dataset.count
    limit = recipe.evaluate.simulate if recipe.evaluate is not None else "all"
    simulated = evaluated if limit == "all" else min(int(limit), evaluated)
    observed = observed_values(context.model, plan)
    passes = 0 if not observed else 1 + calibrator.by_output
    plans = len(calibrator.finalists) + calibrator.trials
    held_out = plans * min(MAX_HOLDOUT, context.calibration.count // 4)
    steps = sum(getattr(named.step, "inferences", STEP) for named in ptq_steps(recipe))
    return (
        context.calibration.count * (passes * CALIBRATE + steps)
        + (simulated + held_out) * SIMULATE
        + evaluated * EVALUATE
        + sample_count(context.model, evaluated) * CAPTURE
    )


def _inference_seconds(prepared: Prepared) -> float:
    """Return the seconds of one inference of the float network on one sample, on this machine."""
    graph, rows = prepared.context.model.graph, prepared.context.fixed_batch or 1
    if parameters(graph) > MAX_PARAMETERS:
        return max(sum(macs(node) for node in graph), parameters(graph)) / MACS_PER_SECOND
    feeds, best = prepared.first_batch(), float("inf")
    threads = prepared.options.threads
    with OrtSession(prepared.context.model, threads=threads, level="basic") as session:
        for _ in range(TRIALS):
            start = time.perf_counter()
            session(feeds)
            best = min(best, time.perf_counter() - start)
    return best / rows


def _weight_seconds(prepared: Prepared, plan: QuantPlan) -> float:
    """Return the seconds in which weights are rounded, written and loaded."""
    values = by_name(prepared.context.model.graph)
    scheme = weight_scheme(prepared.recipe, plan)
    groups: dict[QuantSpec, list[np.ndarray]] = {}
    for name, grid in plan.grid_of.items():
        spec = plan.grids[grid]
        if isinstance(spec, QuantSpec) and spec.bits <= 16 and is_constant(values[name]):
            groups.setdefault(spec, []).append(np.asarray(values[name].const_value))
    rate = MAPPED_PER_SECOND if prepared.loaded.big else WEIGHTS_PER_SECOND
    seconds = parameters(prepared.context.model.graph) / rate
    for spec, weights in groups.items():
        total = sum(weight.size for weight in weights)
        if total > TIMED:
            largest = max(weights, key=lambda weight: weight.size)
            seconds += total * _seconds_per_weight(largest, spec, scheme_for(spec.bits, scheme))
    return seconds


def _seconds_per_weight(weight: np.ndarray, spec: QuantSpec, scheme: WeightScheme) -> float:
    """Return the seconds that a scheme takes for one weight, measured on some rows."""
    some = weight[: max(1, TIMED * len(weight) // weight.size)]
    start = time.perf_counter()
    scheme(some, spec)
    return (time.perf_counter() - start) / some.size


def _duration(seconds: float) -> str:
    """Format a duration in seconds or minutes."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min"


def _size(count: int) -> str:
    """Format a number of bytes with three digits."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.3g} GB"
